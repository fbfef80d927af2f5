"""The loss over fixed noises and timesteps: the same questions again, so that answers compare.

The loss of an epoch is over other noises and timesteps each time, and what those were weighs more
than what was learnt. Here only the adapters change from one measurement to the next.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from diffusers import UNet2DConditionModel

from adapters.diffusion.data.dataset import EncodedDataset, Size
from adapters.diffusion.data.rng import generator_for
from adapters.diffusion.failures import in_parts
from adapters.diffusion.step.loss import Objective
from adapters.diffusion.step.replay import Recorder, Replay

PROBES = 16
"""Predictions in one measurement of one set: about eight training steps' time."""
_TOGETHER = 4
_TOGETHER_ON_A_GPU = PROBES
"""Predictions made at once: launching a pass takes the host of a GPU longer than a few images
take the GPU. Without gradients they take less memory than a training step."""


def held_out_positions(
    groups: Sequence[frozenset[int]], split: float, seed: int
) -> frozenset[int]:
    """Which images are not trained on: about the share ``split``, and at least one where that
    is above 0 and not all are alike. Never all, and at most half, rounded up.

    Args:
        groups: for each image the positions of those that show the same, its own among them.
            They are held out together: a twin in training would hide what is learnt by heart.
    """
    count = len(groups)
    wanted = max(1, round(count * split)) if split else 0
    most = min(count - 1, (count + 1) // 2)
    held: frozenset[int] = frozenset()
    for position in torch.randperm(count, generator=generator_for(seed, "validation")).tolist():
        if len(held) < wanted and len(held | groups[position]) <= most:
            held |= groups[position]
    return held


def trained_buckets(
    buckets: Mapping[Size, Sequence[int]], held_out: Collection[int]
) -> dict[Size, tuple[int, ...]]:
    """The buckets without the images that are held out, and without those left empty."""
    rest = {
        size: tuple(position for position in bucket if position not in held_out)
        for size, bucket in buckets.items()
    }
    return {size: bucket for size, bucket in rest.items() if bucket}


@dataclass(frozen=True)
class _Probe:
    """One image at one timestep; the noise is drawn from the number."""

    number: int
    position: int
    timestep: int


@dataclass(frozen=True, eq=False)
class _Questions:
    """Probes of n images of one size, as the denoiser is asked them at every measurement."""

    key: tuple[_Probe, ...]
    """(n,)"""
    noisy: torch.Tensor
    """(n, c, h, w), in the denoiser's precision."""
    target: torch.Tensor
    """(n, c, h, w)"""
    timesteps: torch.Tensor
    """(n,)"""
    captions: torch.Tensor
    """(n,): rows of them."""
    losses: torch.Tensor
    """(n,): where the answers' go."""

    def own(self) -> _Questions:
        """These themselves: they stay as they are."""
        return self

    def take(self, other: _Questions) -> None:
        """Nothing: who has the same key has the same memory."""

    def halves(self) -> tuple[_Questions, ...]:
        """Both in the same memory; a single one stays whole."""
        middle = len(self.key) // 2
        return (self._part(slice(middle)), self._part(slice(middle, None))) if middle else (self,)

    def _part(self, which: slice) -> _Questions:
        return _Questions(
            key=self.key[which],
            noisy=self.noisy[which],
            target=self.target[which],
            timesteps=self.timesteps[which],
            captions=self.captions[which],
            losses=self.losses[which],
        )


class Evaluation:
    """Measures a denoiser, as it stands, on images that are trained on and on others."""

    def __init__(
        self,
        unet: UNet2DConditionModel,
        objective: Objective,
        dataset: EncodedDataset,
        held_out: Collection[int],
        seed: int,
        device: torch.device,
        conditioning: Callable[[torch.Tensor], torch.Tensor] | None = None,
        recorder: Recorder | None = None,
    ) -> None:
        """Measure with the dataset's captions, or by rows of them with ``conditioning``."""
        self._conditioning = conditioning or dataset.captions.__getitem__
        self._unet = unet
        # Plain, so that runs with another weighting compare.
        self._objective = replace(objective, weight=torch.ones_like(objective.weight))
        self._dataset = dataset
        self._held_out = held_out
        self._seed = seed
        self._device = device
        self.replay: Replay[_Questions] = Replay(recorder, "measurements")
        """What of it is recorded, for who needs the memory."""

    def on_trained(self) -> float:
        """Mean loss of images that are trained on. Reads from the device."""
        return self._measure(self._of_trained)

    def on_held_out(self) -> float | None:
        """Mean loss of the images that are held out; None where none is."""
        return self._measure(self._of_held_out) if self._held_out else None

    @cached_property
    def _of_trained(self) -> list[_Questions]:
        every = range(len(self._dataset.images))
        return self._asked([i for i in every if i not in self._held_out])

    @cached_property
    def _of_held_out(self) -> list[_Questions]:
        return self._asked(sorted(self._held_out))

    def _asked(self, positions: Sequence[int]) -> list[_Questions]:
        """What is asked of these images, as many at once as the device takes."""
        by_size: dict[Size, list[_Probe]] = {}
        for probe in _probes(positions, len(self._objective.weight)):
            by_size.setdefault(self._dataset.images[probe.position].size, []).append(probe)
        together = _TOGETHER_ON_A_GPU if self._device.type == "cuda" else _TOGETHER
        return [
            self._questions(group[start : start + together])
            for group in by_size.values()
            for start in range(0, len(group), together)
        ]

    def _questions(self, probes: Sequence[_Probe]) -> _Questions:
        batch = tuple(probe.position for probe in probes)
        plainly = [False] * len(batch)
        shape = self._dataset.shape(batch)
        noise = torch.stack([self._noise(probe, shape) for probe in probes]).to(self._device)
        latents = self._dataset.latents(batch, plainly, torch.zeros_like(noise))
        timesteps = torch.tensor([probe.timestep for probe in probes], device=self._device)
        return _Questions(
            key=tuple(probes),
            noisy=self._objective.noisy(latents, noise, timesteps).to(self._unet.dtype),
            target=self._objective.target(latents, noise, timesteps),
            timesteps=timesteps,
            captions=torch.tensor(
                self._dataset.rows_of_captions(batch, plainly), device=self._device
            ),
            losses=torch.zeros(len(batch), device=self._device),
        )

    @torch.no_grad()
    def _measure(self, asked: Sequence[_Questions]) -> float:
        for questions in asked:
            in_parts(self._ask, questions, _Questions.halves)
        return float(torch.cat([questions.losses for questions in asked]).mean())

    def _ask(self, questions: _Questions) -> None:
        self.replay.run(questions, self._answer)

    def _answer(self, questions: _Questions) -> None:
        prediction = self._unet(
            questions.noisy,
            questions.timesteps,
            encoder_hidden_states=self._conditioning(questions.captions),
            return_dict=False,
        )[0]
        losses = self._objective.losses(prediction, questions.target, questions.timesteps)
        questions.losses.copy_(losses)

    def _noise(self, probe: _Probe, shape: Sequence[int]) -> torch.Tensor:
        generator = generator_for(self._seed, "evaluation", probe.number)
        return torch.randn(shape[1:], generator=generator)


def _probes(positions: Sequence[int], timesteps: int) -> list[_Probe]:
    """The images in turn, at timesteps spread evenly over the schedule."""
    return [
        _Probe(k, positions[k % len(positions)], int((k + 0.5) / PROBES * timesteps))
        for k in range(PROBES)
    ]
