"""Images and captions, encoded once per run by the VAE and the text encoder."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

import numpy as np
import torch
from PIL import Image, ImageOps

from adapters.diffusion.base.model import BaseModel, on_device
from adapters.diffusion.data.rng import ImageBatch
from adapters.diffusion.data.text import DEFAULT_TOKENS, encode_captions
from adapters.diffusion.oom import split_on_oom

Size = tuple[int, int]
"""Width and height in pixels."""

PIXELS_AT_ONCE = 2 * 512 * 512
"""Pixels per VAE batch: two images of 512 px, which take 2 GB with the VAE's weights."""


@dataclass(frozen=True)
class EncodedImage:
    """Mean and standard deviation of the VAE's latent distribution for one image.

    Training samples new latents from it at every step. Both tensors are (views, c, h, w) in
    float32. The second view, if there is one, is the flipped image.
    """

    size: Size
    mean: torch.Tensor
    std: torch.Tensor


@dataclass(frozen=True)
class EncodedDataset:
    """The encoded images and captions of a run, on the training device."""

    images: tuple[EncodedImage, ...]
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
    def posteriors(self) -> dict[Size, tuple[torch.Tensor, torch.Tensor]]:
        """By image size: means and standard deviations, each (images * views, c, h, w)."""
        return {
            size: (
                torch.cat([self.images[i].mean for i in bucket]),
                torch.cat([self.images[i].std for i in bucket]),
            )
            for size, bucket in self.buckets.items()
        }

    @cached_property
    def buckets(self) -> dict[Size, tuple[int, ...]]:
        """Indices of the images of each size, sorted by size."""
        sizes = sorted({image.size for image in self.images})
        return {
            size: tuple(i for i, image in enumerate(self.images) if image.size == size)
            for size in sizes
        }

    def shape(self, batch: ImageBatch) -> tuple[int, int, int, int]:
        """Shape of a batch's latents, (n, c, h, w)."""
        _, channels, height, width = self.images[batch[0]].mean.shape
        return len(batch), channels, height, width

    def rows(self, batch: ImageBatch, flipped: Sequence[bool]) -> list[int]:
        """Row of each image, or of its flipped view, in the ``posteriors`` of its size."""
        first = self.images[batch[0]]
        bucket, views = self.buckets[first.size], len(first.mean)
        return [bucket.index(i) * views + int(f) for i, f in zip(batch, flipped, strict=True)]

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

    def latents(
        self, batch: ImageBatch, flipped: Sequence[bool], vae_noise: torch.Tensor
    ) -> torch.Tensor:
        """Like ``sample``, for the images with these indices."""
        rows = torch.tensor(self.rows(batch, flipped), device=vae_noise.device)
        return self.sample(self.images[batch[0]].size, rows, vae_noise)


def encode_dataset(
    base: BaseModel,
    images: Iterable[tuple[Image.Image, Size]],
    captions: Sequence[str],
    *,
    flipped: bool,
    device: torch.device,
    variants: Sequence[Sequence[str]] = (),
    max_tokens: int = DEFAULT_TOKENS,
) -> EncodedDataset:
    """Encode images and captions.

    Args:
        images: RGB images, each with the size to crop and resize it to; read one at a time.
        captions: one for each image.
        flipped: also encode each image flipped left to right.
        variants: of each image's caption, if steps train on variants.
        max_tokens: length to which captions are cut: 75, 150 or 225.
    """
    row_of: dict[str, int] = {}
    for text in ("", *captions, *chain.from_iterable(variants)):
        row_of.setdefault(text, len(row_of))
    states = encode_captions(base, list(row_of), device, max_tokens)
    views, sizes = [], []
    for image, size in images:
        fitted = ImageOps.fit(image, size, Image.Resampling.LANCZOS)
        views.append([_pixels(fitted)])
        if flipped:
            views[-1].append(_pixels(ImageOps.mirror(fitted)))
        sizes.append(size)
    with on_device(base.vae, device):
        encoded = _encode_images(base, views, sizes, device)
    return EncodedDataset(
        images=encoded,
        captions=states,
        caption_rows=tuple(row_of[caption] for caption in captions),
        scaling_factor=float(base.vae.config.scaling_factor),
        texts=tuple(row_of),
        variant_rows=tuple(tuple(row_of[text] for text in texts) for texts in variants),
    )


@torch.no_grad()
def _encode_images(
    base: BaseModel,
    views: Sequence[Sequence[torch.Tensor]],
    sizes: Sequence[Size],
    device: torch.device,
) -> tuple[EncodedImage, ...]:
    """Encode in batches of one size, at most ``PIXELS_AT_ONCE`` each."""
    encoded: dict[int, EncodedImage] = {}
    for size in dict.fromkeys(sizes):
        bucket = [i for i, other in enumerate(sizes) if other == size]
        count = max(1, PIXELS_AT_ONCE // (size[0] * size[1]))
        pixels = torch.cat([view for i in bucket for view in views[i]])
        posteriors = [_encode(base, some, device) for some in torch.split(pixels, count)]
        means = torch.cat([mean for mean, _ in posteriors])
        stds = torch.cat([std for _, std in posteriors])
        each = [len(views[i]) for i in bucket]
        for i, mean, std in zip(
            bucket, torch.split(means, each), torch.split(stds, each), strict=True
        ):
            encoded[i] = EncodedImage(size, mean, std)
    return tuple(encoded[i] for i in range(len(sizes)))


def _encode(
    base: BaseModel, pixels: torch.Tensor, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of the latents of (n, 3, h, w) in [-1, 1].

    On out-of-memory the images are encoded one by one.
    """

    def encode(some: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        posterior = base.vae.encode(some.to(device)).latent_dist
        return posterior.mean, posterior.std

    means, stds = zip(
        *split_on_oom(encode, pixels, lambda some: torch.split(some, 1)), strict=True
    )
    return torch.cat(means), torch.cat(stds)


def _pixels(image: Image.Image) -> torch.Tensor:
    """Pixel values, (1, 3, h, w) in [-1, 1]."""
    values = np.asarray(image.convert("RGB"), dtype=np.float32) / 127.5 - 1.0
    return torch.from_numpy(values).permute(2, 0, 1)[None]
