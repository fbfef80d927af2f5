"""Several runs over one frozen base: they come and go, and share one forward and backward pass."""

from __future__ import annotations

import logging
import time
from collections.abc import Hashable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import torch

from adapters.diffusion.data.step_inputs import StepInputs
from adapters.diffusion.failures import broken_device_breaks_the_trainer, is_out_of_memory
from adapters.diffusion.preview import PreviewRequest
from adapters.diffusion.session import DiffusionSession
from adapters.diffusion.step.loss import weighted_squares
from adapters.diffusion.step.passes import Passes
from adapters.diffusion.step.replay import Recorder, Replay
from adapters.diffusion.step.thrift import Thrift
from adapters.diffusion.together.joint_inputs import JointInputs, joint_inputs
from adapters.diffusion.together.rendezvous import LEAST_PATIENCE, Rendezvous
from adapters.diffusion.together.stacked import Stack
from adapters.diffusion.together.turns import Turns
from application.ports import Checkpoint, Preview, StepReport
from domain.failure import FailureCode, TrainingFailed
from domain.parameters import LoraTargets, OptimizerName, TrainingParameters

log = logging.getLogger(__name__)


def kind_of(parameters: TrainingParameters) -> Hashable | None:
    """Runs of one kind can train together; a run whose kind is None only alone.

    Images, captions, seeds, learning rates, epochs and losses may differ.
    """
    plain = (
        parameters.optimizer == OptimizerName.ADAMW
        and parameters.lora_targets != LoraTargets.CONVOLUTIONS
        and not parameters.use_dora
        and not parameters.train_text_encoder
        and not parameters.lora_dropout
    )
    if not plain:
        return None
    return parameters.rank, parameters.lora_scale, str(parameters.lora_targets)


class Ensemble:
    """Runs that advance together, each step of all in as few passes as their shapes allow.

    Every run has a thread of its own. Steps meet at ``rendezvous``; all else that touches the
    device takes ``turn`` first. Shared passes are made by one thread, whoever asks for them:
    libraries keep handles and plans by the thread, and what a recording lacks it cannot make.

    Args:
        recorder: what records passes; None to run them as they are.
        turn: held by whoever uses the device.
        patience: seconds for which a pass waits for a run that took part in the last one.
    """

    def __init__(
        self,
        stack: Stack,
        recorder: Recorder | None,
        turn: Turns,
        patience: float = LEAST_PATIENCE,
    ) -> None:
        self.stack = stack
        self.turn = turn
        self.rendezvous: Rendezvous[MemberSession] = Rendezvous(
            self._advance, time.monotonic, patience
        )
        self._replay: Replay[JointInputs] = Replay(recorder)
        self._passing = ThreadPoolExecutor(1, "passes")
        self._free = list(range(len(stack.leaf)))
        self._together = len(stack.leaf)
        self._losses = torch.zeros(len(stack.leaf), device=stack.leaf.device)

    @property
    def together(self) -> int:
        """Runs in one pass, at most: fewer than there are slots once memory has run out."""
        return self._together

    @property
    def taken(self) -> int:
        """AdmissionQueue that runs have."""
        return len(self.stack.leaf) - len(self._free)

    @property
    def recordings(self) -> int | None:
        """Passes that are recorded; None where they are run as they are."""
        return self._replay.recordings

    @contextmanager
    def sharing_memory(self) -> Iterator[None]:
        """While open, in turn, a run that fails for want of memory is worth another try where
        there are others: without them it may fit.

        Raises:
            TrainingFailed: as it was, or GPU_OOM that says so.
        """
        try:
            yield
        except TrainingFailed as failed:
            if failed.failure.code is not FailureCode.GPU_OOM or self.taken == 1:
                raise
            raise TrainingFailed(replace(failed.failure, retryable=True)) from failed

    @contextmanager
    def slot(self) -> Iterator[int]:
        """A row of the stack for one run, while open.

        Raises:
            RuntimeError: all are taken.
        """
        if not self._free:
            raise RuntimeError(f"all {len(self.stack.leaf)} slots of the trainer are taken")
        row = self._free.pop(0)
        try:
            yield row
        finally:
            self._free.append(row)

    def make_room(self) -> bool:
        """Give back what can be had anew; whether there was anything."""
        return self._replay.make_room()

    def close(self) -> None:
        """Let go of the thread, and of everything."""
        self._passing.shutdown()
        self.make_room()

    def _advance(self, members: Sequence[MemberSession]) -> Mapping[MemberSession, Exception]:
        """Train the next step of each; what a run fails with is its own."""
        failures: dict[MemberSession, Exception] = {}
        with self.turn:
            for group in _groups(members):
                while group:
                    some = group[: self._together]
                    if self._attempt(some):
                        group = group[len(some) :]
                    elif len(some) > 1:
                        self._share_less(len(some))
                    else:
                        failures.update(self._alone(group.pop(0)[0]))
            for member in members:
                # Who finds no memory for that meets it again, by itself.
                with suppress(torch.OutOfMemoryError):
                    member.draw_ahead()
        return failures

    def _alone(self, member: MemberSession) -> dict[MemberSession, Exception]:
        """The step of a run that has to save memory by itself."""
        try:
            with self.sharing_memory():
                member.run_step()
        except TrainingFailed as failed:
            return {member: failed}
        return {}

    def _attempt(self, some: Sequence[tuple[MemberSession, StepInputs]]) -> bool:
        """One pass for all of these. False when memory did not suffice."""
        if any(member.saves_memory for member, _ in some):
            return False
        if not self._joint_pass(some):
            assert self.stack.leaf.grad is not None
            self.stack.leaf.grad.zero_()
            self.make_room()
            return False
        losses = self._losses[: len(some)].clone()
        for (member, inputs), loss in zip(some, losses, strict=True):
            member.update(inputs, loss)
        return True

    def _joint_pass(self, some: Sequence[tuple[MemberSession, StepInputs]]) -> bool:
        """False when memory did not suffice; nothing holds its tensors then."""
        try:
            questions = [member.passes.question(inputs) for member, inputs in some]
            factors = [member.update.factor(inputs.count) for member, inputs in some]
            rows = self.stack.indices([member.row for member, _ in some])
            joint = joint_inputs(questions, factors, rows)
            asks = some[0][0].passes
            self._passing.submit(
                self._replay.run, joint, lambda inputs: self._pass(asks, inputs)
            ).result()
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            return False
        return True

    def _pass(self, passes: Passes, joint: JointInputs) -> None:
        """Add each style's gradient to its row, and note its loss."""
        self.stack.refresh(joint.rows)
        answer = passes.ask(joint.noisy, joint.timesteps, joint.states)
        each = weighted_squares(answer, joint.target, joint.weights)
        losses = each.view(len(joint.rows), -1).sum(dim=1)
        # Each style's loss depends on its own adapters alone, so the sum's gradient is each one's.
        torch.autograd.backward((losses * joint.factors).sum())
        self._losses[: len(joint.rows)].copy_(losses.detach())

    def _share_less(self, count: int) -> None:
        self._together = -(-count // 2)
        log.warning("out of memory, going on with %d runs in one pass", self._together)


class MemberSession(DiffusionSession):
    """One of several runs: its steps are taken with the others', all else is as if alone."""

    def __init__(self, ensemble: Ensemble, row: int, **keywords: Any) -> None:
        self._ensemble = ensemble
        self.row = row
        """In the stack."""
        rows = ensemble.stack.indices([row])
        super().__init__(**keywords, refresh=lambda: ensemble.stack.refresh(rows))
        ensemble.rendezvous.expect(self)

    @property
    def saves_memory(self) -> bool:
        """True once not even this run alone fits into a pass as it is."""
        return self._thrift != Thrift(self._plan.parameters.batch_size)

    @broken_device_breaks_the_trainer()
    def advance(self) -> StepReport:
        """Wait for the others and run the next step with theirs."""
        if self.finished:
            raise RuntimeError("the run is finished")
        try:
            self._ensemble.rendezvous.meet(self)
            with self._ensemble.turn:
                report = self.count_step()
        except BaseException:
            self._ensemble.rendezvous.excuse(self)
            raise
        if self.finished:
            self._ensemble.rendezvous.excuse(self)
        return report

    def checkpoint(self) -> Checkpoint:
        """The run as it stands between two steps."""
        with self._ensemble.turn:
            return super().checkpoint()

    def weights(self) -> bytes:
        """The adapters as they stand, as a file for other programs."""
        with self._ensemble.turn:
            return super().weights()

    @broken_device_breaks_the_trainer()
    def previews(self, *, adapted: bool) -> tuple[Preview, ...]:
        """Images by this run's adapters, or without any; others may come between two."""
        drawn: tuple[Preview, ...] = ()
        for request in self._previews.each():
            with self._ensemble.turn:
                drawn += self._draw(request, adapted=adapted)
        return drawn

    def close(self) -> None:
        """Leave the others to themselves."""
        self._ensemble.rendezvous.excuse(self)
        super().close()

    def _draw(self, request: PreviewRequest, *, adapted: bool) -> tuple[Preview, ...]:
        with self._ensemble.sharing_memory(), self._ensemble.stack.showing(self.row):
            return super()._draw(request, adapted=adapted)

    def _measured(self, epoch: int) -> tuple[float | None, float | None]:
        with self._ensemble.sharing_memory(), self._ensemble.stack.showing(self.row):
            return super()._measured(epoch)

    def _make_room(self) -> bool:
        return self._ensemble.make_room()

    def _attempt(self, inputs: StepInputs) -> bool:
        """Recompute feature maps in this run's own passes only."""
        if not self._thrift.checkpointing:
            return super()._attempt(inputs)
        self._base.unet.enable_gradient_checkpointing()
        try:
            return super()._attempt(inputs)
        finally:
            self._base.unet.disable_gradient_checkpointing()

    def _apply(self, thrift: Thrift) -> None:
        self._thrift = thrift
        self._steps.place.replay.make_room()


def _groups(
    members: Sequence[MemberSession],
) -> Iterator[list[tuple[MemberSession, StepInputs]]]:
    """The runs whose next batches have the same shape can share a pass.

    In the order of their rows, whoever came first: equal company is to give equal sums.
    """
    groups: dict[Hashable, list[tuple[MemberSession, StepInputs]]] = {}
    for member in sorted(members, key=lambda member: member.row):
        inputs = member.next_inputs()
        key = f"alone {member.row}" if member.saves_memory else inputs.shape
        groups.setdefault(key, []).append((member, inputs))
    yield from groups.values()
