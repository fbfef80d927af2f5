"""One run on several devices: each takes some of a step's pictures, the first one the update."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import pairwise

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel

from adapters.diffusion.data.dataset import Dataset
from adapters.diffusion.data.step_inputs import StepInputs
from adapters.diffusion.failures import is_out_of_memory
from adapters.diffusion.lora.adapted_denoiser import adapted_denoiser
from adapters.diffusion.step.loss import objective_of
from adapters.diffusion.step.passes import Passes
from adapters.diffusion.step.replay import Recorder, Replay
from adapters.diffusion.step.steps import Place, Steps
from adapters.diffusion.step.update import Update
from adapters.diffusion.strategy import Strategy
from domain.parameters import TrainingParameters

log = logging.getLogger(__name__)


def devices_that_pay(parameters: TrainingParameters) -> int:
    """Devices that a run can make use of, the first one included: at most one a picture.

    What dropout leaves out is drawn on the device, and a text encoder that is trained lies on
    one; such runs are left whole.
    """
    whole = parameters.lora_dropout or parameters.train_text_encoder
    return 1 if whole else parameters.batch_size


@dataclass(frozen=True, eq=False)
class Helper:
    """What a further device holds: a place, and the adapters as they were before the step."""

    place: Place
    weights: torch.nn.Parameter
    """As ``Adapters.flat``, with a gradient of the same shape."""
    loss_scale: torch.Tensor
    """A scalar, as the first device has it."""
    losses: torch.Tensor
    """A scalar: where a pass leaves the sum over its pictures."""

    def begin(
        self,
        weights: torch.Tensor,
        loss_scale: torch.Tensor,
        inputs: StepInputs,
        micro_batch: int,
    ) -> None:
        """Ask the device for the gradient of some pictures, by the first one's weights.

        Raises:
            torch.OutOfMemoryError: they do not fit there.
        """
        with torch.no_grad():
            self.weights.copy_(weights, non_blocking=True)
            self.loss_scale.copy_(loss_scale, non_blocking=True)
        _add_gradient(self.place, inputs.on(self.place.device), micro_batch, self.losses)


@contextmanager
def helping(
    unet: UNet2DConditionModel,
    parameters: TrainingParameters,
    strategy: Strategy,
    noise_schedule: DDPMScheduler,
    dataset: Dataset,
    recorder: Recorder | None,
) -> Iterator[Helper]:
    """While open, a replica of the denoiser is ready to take part in a run.

    Args:
        dataset: the run's, on the first device.

    Raises:
        TrainingFailed: GPU_OOM.
    """
    device = unet.device
    with adapted_denoiser(unet, parameters, strategy) as (adapters, refresh):
        loss_scale = torch.ones((), device=device)
        passes = Passes(
            unet,
            objective_of(noise_schedule, parameters.snr_gamma, device),
            dataset.on(device),
            scaled=lambda loss: loss * loss_scale,
            refresh=refresh,
            channels_last=strategy.channels_last,
        )
        place = Place(device, unet, passes, Replay(recorder))
        yield Helper(place, adapters.flat, loss_scale, torch.zeros((), device=device))


class SpreadSteps(Steps):
    """Steps over several devices, equal within rounding to those on one.

    All of it is asked for by one thread: what is asked of a GPU is done behind its back, so
    devices work side by side as long as their steps are recorded. The first device sends the
    weights, adds up the gradients and moves the weights along; the others remember nothing.
    """

    def __init__(self, place: Place, update: Update, helpers: Sequence[Helper]) -> None:
        """Work on ``place`` and with ``helpers``."""
        super().__init__(place, update)
        self._helpers = list(helpers)
        self._full: Helper | None = None
        self._losses = torch.zeros((), device=place.device)

    @property
    def places(self) -> tuple[Place, ...]:
        """Where steps are run, the first device first."""
        return (self.place, *(helper.place for helper in self._helpers))

    def run(self, inputs: StepInputs, micro_batch: int) -> None:
        """As ``Steps.run``."""
        *others, own = split(inputs, len(self.places))
        shares = list(zip(self._helpers, others, strict=False))  # a small batch leaves some idle
        scale, self._full = self.update.factor(1), None
        for helper, part in shares:
            try:
                helper.begin(self.update.weights, scale, part, micro_batch)
            except RuntimeError as error:
                if is_out_of_memory(error):
                    self._full = helper
                raise
        _add_gradient(self.place, own, micro_batch, self._losses)
        self.update.gradient.mul_(own.count / inputs.count)
        for helper, part in shares:
            gradient = helper.weights.grad
            assert gradient is not None
            here = gradient.to(self.place.device, non_blocking=True)
            self.update.gradient.add_(here, alpha=part.count / inputs.count)
            self._losses += helper.losses.to(self.place.device, non_blocking=True)
            gradient.zero_()
        self.update(inputs, self._losses)

    def at_once(self, count: int) -> int:
        """As ``Steps.at_once``: of the device that has most."""
        return -(-count // min(count, len(self.places)))

    def without_the_full(self) -> bool:
        """As ``Steps.without_the_full``."""
        if self._full is None:
            return False
        self._helpers.remove(self._full)
        self._full.place.close()
        log.warning("out of memory on %s, going on without it", self._full.place.device)
        self._full = None
        return True

    def discard_gradient(self) -> None:
        """As ``Steps.discard_gradient``, on every device."""
        super().discard_gradient()
        for helper in self._helpers:
            assert helper.weights.grad is not None
            helper.weights.grad.zero_()


def split(inputs: StepInputs, most: int) -> list[StepInputs]:
    """A batch in as many parts of about the same size as can be had, the smallest last.

    The last one is for the device that has the update to do, too.
    """
    count = min(most, inputs.count)
    if count == 1:
        return [inputs]
    ends = [-(-inputs.count * part // count) for part in range(count + 1)]
    return [inputs.part(slice(start, end)) for start, end in pairwise(ends)]


def _add_gradient(
    place: Place, inputs: StepInputs, micro_batch: int, losses: torch.Tensor
) -> None:
    """Add the gradient of the pictures' mean loss to the place's own, and note the sum of it."""
    with _current(place.device):
        place.replay.run(
            inputs, lambda batch: _note(losses, place.passes.gradient(batch, micro_batch))
        )


def _note(losses: torch.Tensor, found: torch.Tensor) -> None:
    losses.copy_(found)


def _current(device: torch.device) -> AbstractContextManager[object]:
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
