"""The loss over fixed noises and timesteps: the same questions again, so that answers compare.

The loss of an epoch is over other noises and timesteps each time, and what those were weighs more
than what was learnt. Here only the adapters change from one measurement to the next.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from diffusers import UNet2DConditionModel

from adapters.diffusion.data.dataset import Dataset, Size
from adapters.diffusion.data.randomness import generator_for
from adapters.diffusion.failures import in_parts
from adapters.diffusion.step.loss import Objective

PROBES = 16
"""Predictions in one measurement of one set: about eight training steps' time."""
_TOGETHER = 4
_TOGETHER_ON_A_GPU = PROBES
"""Predictions made at once: launching a pass takes the host of a GPU longer than a few pictures
take the GPU. Without gradients they take less memory than a training step."""


def held_out_positions(
    groups: Sequence[frozenset[int]], split: float, seed: int
) -> frozenset[int]:
    """Which pictures are not trained on: about the share ``split``, and at least one where that
    is above 0 and not all are alike. Never all, and at most half, rounded up.

    Args:
        groups: for each picture the positions of those that show the same, its own among them.
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
    """The buckets without the pictures that are held out, and without those left empty."""
    rest = {
        size: tuple(position for position in bucket if position not in held_out)
        for size, bucket in buckets.items()
    }
    return {size: bucket for size, bucket in rest.items() if bucket}


@dataclass(frozen=True)
class _Probe:
    """One picture at one timestep; the noise is drawn from the number."""

    number: int
    position: int
    timestep: int


class Evaluation:
    """Measures a denoiser, as it stands, on pictures that are trained on and on others."""

    def __init__(
        self,
        unet: UNet2DConditionModel,
        objective: Objective,
        dataset: Dataset,
        held_out: Collection[int],
        seed: int,
        device: torch.device,
        conditioning: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> None:
        """Measure with the dataset's captions, or by rows of them with ``conditioning``."""
        self._conditioning = conditioning or dataset.captions.__getitem__
        self._unet = unet
        # Plain, so that runs with another weighting compare.
        self._objective = replace(objective, weight=torch.ones_like(objective.weight))
        self._dataset = dataset
        self._seed = seed
        self._device = device
        trained = [i for i in range(len(dataset.pictures)) if i not in held_out]
        timesteps = len(objective.weight)
        self._trained = _probes(trained, timesteps)
        self._held_out = _probes(sorted(held_out), timesteps)

    def on_trained(self) -> float:
        """Mean loss of pictures that are trained on. Reads from the device."""
        return self._measure(self._trained)

    def on_held_out(self) -> float | None:
        """Mean loss of the pictures that are held out; None where none is."""
        return self._measure(self._held_out) if self._held_out else None

    @torch.no_grad()
    def _measure(self, probes: Sequence[_Probe]) -> float:
        by_size: dict[Size, list[_Probe]] = {}
        for probe in probes:
            by_size.setdefault(self._dataset.pictures[probe.position].size, []).append(probe)
        together = _TOGETHER_ON_A_GPU if self._device.type == "cuda" else _TOGETHER
        losses = [
            some
            for group in by_size.values()
            for start in range(0, len(group), together)
            for some in in_parts(self._losses, group[start : start + together], _halves)
        ]
        return float(torch.cat(losses).mean())

    def _losses(self, probes: Sequence[_Probe]) -> torch.Tensor:
        batch = tuple(probe.position for probe in probes)
        plainly = [False] * len(batch)
        shape = self._dataset.shape(batch)
        noise = torch.stack([self._noise(probe, shape) for probe in probes]).to(self._device)
        latents = self._dataset.latents(batch, plainly, torch.zeros_like(noise))
        timesteps = torch.tensor([probe.timestep for probe in probes], device=self._device)
        rows = torch.tensor(self._dataset.rows_of_captions(batch, plainly), device=self._device)
        objective = self._objective
        prediction = self._unet(
            objective.noisy(latents, noise, timesteps).to(self._unet.dtype),
            timesteps,
            encoder_hidden_states=self._conditioning(rows),
            return_dict=False,
        )[0]
        target = objective.target(latents, noise, timesteps)
        return objective.losses(prediction, target, timesteps)

    def _noise(self, probe: _Probe, shape: Sequence[int]) -> torch.Tensor:
        generator = generator_for(self._seed, "evaluation", probe.number)
        return torch.randn(shape[1:], generator=generator)


def _probes(positions: Sequence[int], timesteps: int) -> list[_Probe]:
    """The pictures in turn, at timesteps spread evenly over the schedule."""
    if not positions:
        return []
    return [
        _Probe(k, positions[k % len(positions)], int((k + 0.5) / PROBES * timesteps))
        for k in range(PROBES)
    ]


def _halves(probes: list[_Probe]) -> list[list[_Probe]]:
    middle = len(probes) // 2
    return [half for half in (probes[:middle], probes[middle:]) if half]
