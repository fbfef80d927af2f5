"""Images and captions as the denoiser wants them, encoded once for the whole run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import numpy as np
import torch
from PIL import Image, ImageOps

from adapters.diffusion.base.model import BaseModel, placed
from adapters.diffusion.data.randomness import Batch
from adapters.diffusion.failures import in_parts

Size = tuple[int, int]
"""Width and height in pixels."""

PIXELS_AT_ONCE = 2 * 512 * 512
"""Pixels that the autoencoder takes at a time: at 512 px 2 images, in 2 GB with its weights."""
CAPTIONS_AT_ONCE = 32
"""Captions that the text encoder takes at a time."""


@dataclass(frozen=True)
class EncodedImage:
    """The autoencoder's posterior of one image, not a sample of it: each visit draws anew.

    Both tensors are (views, c, h, w) in float32; a second view is the mirrored image.
    """

    size: Size
    mean: torch.Tensor
    deviation: torch.Tensor


@dataclass(frozen=True)
class Dataset:
    """A run's images and captions, on the device."""

    images: tuple[EncodedImage, ...]
    captions: torch.Tensor
    """(1 + captions, tokens, width): the empty caption's states, then each caption's once."""
    caption_rows: tuple[int, ...]
    """For each image its row in ``captions``."""
    scaling_factor: float

    @cached_property
    def posteriors(self) -> dict[Size, tuple[torch.Tensor, torch.Tensor]]:
        """Means and deviations of a size's images, each (images * views, c, h, w)."""
        return {
            size: (
                torch.cat([self.images[i].mean for i in bucket]),
                torch.cat([self.images[i].deviation for i in bucket]),
            )
            for size, bucket in self.buckets.items()
        }

    @cached_property
    def _first_rows(self) -> dict[int, int]:
        """For each image the row of its first view."""
        rows: dict[int, int] = {}
        for bucket in self.buckets.values():
            views = [len(self.images[i].mean) for i in bucket]
            rows.update(zip(bucket, accumulate(views, initial=0), strict=False))
        return rows

    @cached_property
    def buckets(self) -> dict[Size, tuple[int, ...]]:
        """Positions of the images of each size, in order of the sizes."""
        sizes = sorted({image.size for image in self.images})
        return {
            size: tuple(i for i, image in enumerate(self.images) if image.size == size)
            for size in sizes
        }

    def shape(self, batch: Batch) -> tuple[int, int, int, int]:
        """(n, c, h, w) of a batch's latents."""
        _, channels, height, width = self.images[batch[0]].mean.shape
        return len(batch), channels, height, width

    def rows(self, batch: Batch, mirrored: Sequence[bool]) -> list[int]:
        """Each image's row in ``posteriors``."""
        return [self._first_rows[i] + int(flip) for i, flip in zip(batch, mirrored, strict=True)]

    def rows_of_captions(self, batch: Batch, uncaptioned: Sequence[bool]) -> list[int]:
        """Each image's row in ``captions``, or the empty caption's."""
        return [
            0 if empty else self.caption_rows[i]
            for i, empty in zip(batch, uncaptioned, strict=True)
        ]

    def sample(self, size: Size, rows: torch.Tensor, posterior: torch.Tensor) -> torch.Tensor:
        """A sample of each image's latents, (n, c, h, w), scaled for the denoiser.

        Args:
            rows: (n,), int64, as ``rows`` gives them, on the device.
            posterior: standard normal, (n, c, h, w), on the device.
        """
        mean, deviation = self.posteriors[size]
        return (mean[rows] + deviation[rows] * posterior) * self.scaling_factor

    def latents(
        self, batch: Batch, mirrored: Sequence[bool], posterior: torch.Tensor
    ) -> torch.Tensor:
        """The same by the images' positions."""
        rows = torch.tensor(self.rows(batch, mirrored), device=posterior.device)
        return self.sample(self.images[batch[0]].size, rows, posterior)

    def conditioning(self, batch: Batch, uncaptioned: Sequence[bool]) -> torch.Tensor:
        """Each image's caption states, or the empty caption's: (n, tokens, width)."""
        return self.captions[self.rows_of_captions(batch, uncaptioned)]


def encode_dataset(
    base: BaseModel,
    images: Iterable[tuple[Image.Image, Size]],
    captions: Sequence[str],
    *,
    mirrored: bool,
    device: torch.device,
) -> Dataset:
    """Encode every image at its bucket's size, and every caption.

    Args:
        images: RGB images, each with the size to train it at; read one at a time.
        captions: one for each image.
        mirrored: encode each image's mirror image too.
    """
    distinct = list(dict.fromkeys(["", *captions]))
    states = encode_captions(base, distinct, device)
    views, sizes = [], []
    for image, size in images:
        fitted = ImageOps.fit(image, size, Image.Resampling.LANCZOS)
        views.append([_pixels(fitted)])
        if mirrored:
            views[-1].append(_pixels(ImageOps.mirror(fitted)))
        sizes.append(size)
    with placed(base.vae, device):
        encoded = _encode_images(base, views, sizes, device)
    rows = tuple(distinct.index(caption) for caption in captions)
    return Dataset(encoded, states, rows, float(base.vae.config.scaling_factor))


def tokens_of(base: BaseModel, captions: Iterable[str]) -> torch.Tensor:
    """(captions, tokens) in int64: padded and cut to the length that the text encoder reads,
    which is 77 for CLIP with the marks of beginning and end.
    """
    tokens: torch.Tensor = base.tokenizer(
        list(captions),
        padding="max_length",
        truncation=True,
        return_tensors="pt",
    ).input_ids
    return tokens


@torch.no_grad()
def encode_captions(
    base: BaseModel, captions: Sequence[str], device: torch.device
) -> torch.Tensor:
    """The text encoder's states of each caption, (captions, tokens, width).

    As SD 1.5 reads them: of ``tokens_of``, last layer.
    """
    tokens = tokens_of(base, captions)
    with placed(base.text_encoder, device):
        states = [
            base.text_encoder(few.to(device)).last_hidden_state
            for few in torch.split(tokens, CAPTIONS_AT_ONCE)
        ]
    return torch.cat(states).to(base.unet.dtype)


@torch.no_grad()
def _encode_images(
    base: BaseModel,
    views: Sequence[Sequence[torch.Tensor]],
    sizes: Sequence[Size],
    device: torch.device,
) -> tuple[EncodedImage, ...]:
    """Encode what is of one size together, as far as memory is sure to allow it."""
    encoded: dict[int, EncodedImage] = {}
    for size in dict.fromkeys(sizes):
        bucket = [i for i, other in enumerate(sizes) if other == size]
        count = max(1, PIXELS_AT_ONCE // (size[0] * size[1]))
        pixels = torch.cat([view for i in bucket for view in views[i]])
        posteriors = [_encode(base, some, device) for some in torch.split(pixels, count)]
        means = torch.cat([mean for mean, _ in posteriors])
        deviations = torch.cat([deviation for _, deviation in posteriors])
        each = [len(views[i]) for i in bucket]
        for i, mean, deviation in zip(
            bucket, torch.split(means, each), torch.split(deviations, each), strict=True
        ):
            encoded[i] = EncodedImage(size, mean, deviation)
    return tuple(encoded[i] for i in range(len(sizes)))


def _encode(
    base: BaseModel, pixels: torch.Tensor, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and deviation of (n, 3, h, w) in [-1, 1]; one by one where memory is short."""

    def encode(some: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        posterior = base.vae.encode(some.to(device)).latent_dist
        return posterior.mean, posterior.std

    means, deviations = zip(
        *in_parts(encode, pixels, lambda some: torch.split(some, 1)), strict=True
    )
    return torch.cat(means), torch.cat(deviations)


def _pixels(image: Image.Image) -> torch.Tensor:
    """(1, 3, h, w) in [-1, 1]."""
    values = np.asarray(image.convert("RGB"), dtype=np.float32) / 127.5 - 1.0
    return torch.from_numpy(values).permute(2, 0, 1)[None]
