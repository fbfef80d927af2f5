"""Several runs at once over one frozen base: one forward and backward pass for all of them."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from adapters.diffusion.failures import gpu_oom, is_out_of_memory
from adapters.diffusion.replay import Recorder, Replay
from adapters.diffusion.session import DiffusionSession
from adapters.diffusion.stacked import Stack
from adapters.diffusion.step import StepInputs
from application.ports import Preview, StepReport
from domain.failure import TrainingFailed
from domain.parameters import LoraTargets, OptimizerName, TrainingParameters

log = logging.getLogger(__name__)

Outcome = StepReport | TrainingFailed | None
"""Of one run in one joint step: its report, its failure, or nothing because it had ended."""


def likeness(parameters: TrainingParameters) -> Hashable | None:
    """Runs with equal likeness can train together; a run whose likeness is None only alone.

    Pictures, captions, seeds, learning rates, epochs and losses may differ.
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


class MemberSession(DiffusionSession):
    """One of several runs. Steps come from the joint session; all else is as if alone."""

    def __init__(self, stack: Stack, style: int, **keywords: Any) -> None:
        self._stack = stack
        self._style = style
        super().__init__(**keywords)

    def advance(self) -> StepReport:
        """Not by itself."""
        raise RuntimeError("a run among several is advanced with them")

    def previews(self, *, adapted: bool) -> tuple[Preview, ...]:
        """Pictures by this run's adapters, or without any."""
        with self._stack.showing(self._style):
            return super().previews(adapted=adapted)

    def _measured(self, epoch: int) -> tuple[float | None, float | None]:
        with self._stack.showing(self._style):
            return super()._measured(epoch)


@dataclass(frozen=True)
class JointInputs:
    """The next step's batch of each of some runs, all of one shape."""

    styles: tuple[int, ...]
    each: tuple[StepInputs, ...]

    @property
    def key(self) -> Hashable:
        """Equal for batches that one recording serves."""
        return self.styles, tuple(inputs.key for inputs in self.each)

    def own(self) -> JointInputs:
        """A copy in memory of its own."""
        return JointInputs(self.styles, tuple(inputs.own() for inputs in self.each))

    def take(self, other: JointInputs) -> None:
        """Copy another batch's content into this memory."""
        for own, new in zip(self.each, other.each, strict=True):
            own.take(new)


class JointSession:
    """Runs that advance together, each step of all in as few passes as their shapes allow."""

    def __init__(
        self, sessions: Sequence[MemberSession], stack: Stack, recorder: Recorder | None
    ) -> None:
        self.sessions = tuple(sessions)
        """Each run, to look at, to save and to draw with."""
        self._stack = stack
        self._replay: Replay[JointInputs] = Replay(recorder)
        self._failed: set[int] = set()
        self._together = len(sessions)

    @property
    def finished(self) -> bool:
        """True when no run has a step left."""
        return not self._running()

    @property
    def together(self) -> int:
        """Runs in one pass, at most: fewer than there are once memory has run out."""
        return self._together

    def advance(self) -> tuple[Outcome, ...]:
        """Run the next step of every run that has one left. A run that fails leaves the others.

        Raises:
            TrainingFailed: GPU_OOM, when not even one run at a time fits in.
        """
        outcomes: list[Outcome] = [None] * len(self.sessions)
        for group in self._groups():
            self._run(group)
        for style in self._running():
            try:
                outcomes[style] = self.sessions[style].count_step()
            except TrainingFailed as failed:
                self._failed.add(style)
                outcomes[style] = failed
        return tuple(outcomes)

    def close(self) -> None:
        """Let go of the recordings; the runs themselves are closed by who opened them."""
        self._replay.forget()

    def _running(self) -> list[int]:
        return [
            style
            for style, session in enumerate(self.sessions)
            if style not in self._failed and not session.finished
        ]

    def _groups(self) -> Iterator[list[tuple[int, StepInputs]]]:
        """The runs whose next batches have the same shape: those can share a pass."""
        groups: dict[tuple[int, ...], list[tuple[int, StepInputs]]] = {}
        for style in self._running():
            inputs = self.sessions[style].next_inputs()
            groups.setdefault(inputs.shape, []).append((style, inputs))
        yield from groups.values()

    def _run(self, group: list[tuple[int, StepInputs]]) -> None:
        """A group in passes of as many runs as memory has turned out to hold."""
        while group:
            some = group[: self._together]
            joint = JointInputs(tuple(s for s, _ in some), tuple(i for _, i in some))
            if self._attempt(joint):
                group = group[len(some) :]
            else:
                self._save_memory(len(some), joint.styles)

    def _attempt(self, joint: JointInputs) -> bool:
        try:
            self._replay.run(joint, self._step)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            return False
        return True

    def _save_memory(self, count: int, styles: Sequence[int]) -> None:
        if count == 1:
            raise gpu_oom()
        self._together = -(-count // 2)
        log.warning("out of memory, going on with %d runs in one pass", self._together)
        self._replay.forget()
        for style in styles:
            self.sessions[style].stepper.update.discard_gradient()
        if self._stack.leaf.is_cuda:
            torch.cuda.empty_cache()

    def _step(self, joint: JointInputs) -> None:
        """Until the gradient is whole nothing else changes."""
        steppers = [self.sessions[style].stepper for style in joint.styles]
        self._stack.path.refresh(joint.styles)
        questions = [
            stepper.question(inputs) for stepper, inputs in zip(steppers, joint.each, strict=True)
        ]
        answers = steppers[0].ask(
            torch.cat([question.noisy for question in questions]),
            torch.cat([question.timesteps for question in questions]),
            torch.cat([question.states for question in questions]),
        )
        losses = [
            stepper.losses(question, answer)
            for stepper, question, answer in zip(
                steppers, questions, answers.chunk(len(steppers)), strict=True
            )
        ]
        # Each run's loss depends on its own adapters alone, so the sum's gradient is each one's.
        means = [
            stepper.update.scaled(loss / inputs.count)
            for stepper, loss, inputs in zip(steppers, losses, joint.each, strict=True)
        ]
        torch.autograd.backward(torch.stack(means).sum())
        for stepper, inputs, loss in zip(steppers, joint.each, losses, strict=True):
            stepper.update(inputs, loss.detach())
