"""Images and captions, encoded once per run by the VAE and the text encoder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

import numpy as np
import torch
from PIL import Image, ImageOps

from adapters.common.device_memory import on_device, split_on_oom
from adapters.diffusion.base.model import BaseModel
from adapters.diffusion.data.rng import ImageBatch
from adapters.diffusion.data.text import DEFAULT_TOKENS, encode_captions

Size = tuple[int, int]
"""Width and height in pixels."""

PIXELS_AT_ONCE = 2 * 512 * 512
"""Pixels per VAE batch: two images of 512 px, which take 2 GB with the VAE's weights. On
out-of-memory images are encoded one by one."""


@dataclass(frozen=True)
class EncodedDataset:
    """The encoded images and captions of a run, on the training device."""

    sizes: tuple[Size, ...]
    """Size of each image in training."""
    posteriors: Mapping[Size, tuple[torch.Tensor, torch.Tensor]]
    """Mean and standard deviation of the VAE's latent distributions, from which each training step
    samples: by size, each (views, c, h, w) in float32."""
    first_views: tuple[int, ...]
    """Row of each image in the ``posteriors`` of its size. The next row is the image flipped left
    to right, if flipped images are encoded."""
    captions: torch.Tensor
    """(1 + k, tokens, width): text encoder states of the empty caption, then of the run's k
    distinct captions and variants."""
    caption_rows: tuple[int, ...]
    """Row of each image's caption in ``captions``."""
    scaling_factor: float
    """VAE latents are multiplied by this for the UNet (0.18215 for SD 1.5)."""
    texts: tuple[str, ...] = ()
    """The text of each row in ``captions``."""
    variant_rows: tuple[tuple[int, ...], ...] = ()
    """Rows of each image's caption variants, if steps train on variants."""

    @cached_property
    def buckets(self) -> dict[Size, tuple[int, ...]]:
        """Indices of the images of each size, sorted by size."""
        return {
            size: tuple(i for i, other in enumerate(self.sizes) if other == size)
            for size in sorted(set(self.sizes))
        }

    def shape(self, batch: ImageBatch) -> tuple[int, int, int, int]:
        """Shape of a batch's latents, (n, c, h, w)."""
        mean, _ = self.posteriors[self.sizes[batch[0]]]
        return len(batch), mean.shape[1], mean.shape[2], mean.shape[3]

    def rows(self, batch: ImageBatch, flipped: Sequence[bool]) -> list[int]:
        """Row of each image, or of its flipped view, in the ``posteriors`` of its size."""
        return [self.first_views[i] + int(f) for i, f in zip(batch, flipped, strict=True)]

    def rows_of_captions(
        self, batch: ImageBatch, caption_dropped: Sequence[bool], variants: Sequence[int] = ()
    ) -> list[int]:
        """Row in ``captions`` for each image; 0, the empty caption, if it is dropped.

        Args:
            variants: for each image a number that chooses among its caption's variants;
                empty for the original captions.
        """
        rows = [self.caption_rows[i] for i in batch]
        if self.variant_rows and variants:
            rows = [
                self.variant_rows[i][number % len(self.variant_rows[i])]
                for i, number in zip(batch, variants, strict=True)
            ]
        return [0 if empty else row for row, empty in zip(rows, caption_dropped, strict=True)]

    def sample(self, size: Size, rows: torch.Tensor, vae_noise: torch.Tensor) -> torch.Tensor:
        """Sample latents, (n, c, h, w), scaled for the UNet.

        Args:
            rows: (n,), int64, from ``rows``, on the training device.
            vae_noise: (n, c, h, w), standard normal, on the training device.
        """
        mean, std = self.posteriors[size]
        return (mean[rows] + std[rows] * vae_noise) * self.scaling_factor


def encode_dataset(
    base: BaseModel,
    images: Iterable[tuple[Image.Image, Size]],
    captions: Sequence[str],
    *,
    uses: Sequence[int] | None = None,
    flipped: bool,
    device: torch.device,
    variants: Sequence[Sequence[str]] = (),
    max_tokens: int = DEFAULT_TOKENS,
) -> EncodedDataset:
    """Encode images and captions.

    Args:
        images: RGB images, each with the size to crop and resize it to; read one at a time.
        captions: one for each image.
        uses: numbers of the images in the dataset, some several times; None for each image once.
        flipped: also encode each image flipped left to right.
        variants: of each image's caption, if steps train on variants.
        max_tokens: length to which captions are cut: 75, 150 or 225.
    """
    row_of: dict[str, int] = {}
    for text in ("", *captions, *chain.from_iterable(variants)):
        row_of.setdefault(text, len(row_of))
    states = encode_captions(base, list(row_of), device, max_tokens)
    sizes, first_views, counts = [], [], Counter[Size]()
    waiting: dict[Size, list[torch.Tensor]] = {}
    encoded: dict[Size, list[tuple[torch.Tensor, torch.Tensor]]] = {}

    def encode(pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        posterior = base.vae.encode(pixels.to(device)).latent_dist
        return posterior.mean, posterior.std

    def encode_waiting(size: Size) -> None:
        pixels = torch.cat(waiting.pop(size))
        parts = split_on_oom(encode, pixels, lambda some: torch.split(some, 1))
        encoded.setdefault(size, []).extend(parts)

    with torch.no_grad(), on_device(base.vae, device):
        for image, size in images:
            sizes.append(size)
            first_views.append(counts[size])
            fitted = ImageOps.fit(image, size, Image.Resampling.LANCZOS)
            for view in (fitted, ImageOps.mirror(fitted)) if flipped else (fitted,):
                counts[size] += 1
                waiting.setdefault(size, []).append(pixels_of(view))
                if len(waiting[size]) == max(1, PIXELS_AT_ONCE // (size[0] * size[1])):
                    encode_waiting(size)
        for size in list(waiting):
            encode_waiting(size)
    uses = range(len(sizes)) if uses is None else uses
    posteriors = {}
    for size, parts in encoded.items():
        means, stds = zip(*parts, strict=True)
        posteriors[size] = torch.cat(means), torch.cat(stds)
    return EncodedDataset(
        sizes=tuple(sizes[i] for i in uses),
        posteriors=posteriors,
        first_views=tuple(first_views[i] for i in uses),
        captions=states,
        caption_rows=tuple(row_of[captions[i]] for i in uses),
        scaling_factor=float(base.vae.config.scaling_factor),
        texts=tuple(row_of),
        variant_rows=tuple(tuple(row_of[text] for text in variants[i]) for i in uses if variants),
    )


def pixels_of(image: Image.Image) -> torch.Tensor:
    """Pixel values, (1, 3, h, w) in [-1, 1]."""
    values = np.asarray(image.convert("RGB"), dtype=np.float32) / 127.5 - 1.0
    return torch.from_numpy(values).permute(2, 0, 1)[None]
