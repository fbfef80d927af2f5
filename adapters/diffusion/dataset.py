"""Pictures and captions as the denoiser wants them, encoded once for the whole run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageOps

from adapters.diffusion.base_model import BaseModel, placed
from adapters.diffusion.epoch_plan import Batch

Size = tuple[int, int]
"""Width and height in pixels."""


@dataclass(frozen=True)
class EncodedPicture:
    """The autoencoder's posterior of one picture, not a sample of it: each visit draws anew.

    Both tensors are (views, c, h, w) in float32; a second view is the mirrored picture.
    """

    size: Size
    mean: torch.Tensor
    deviation: torch.Tensor


@dataclass(frozen=True)
class Dataset:
    """A run's pictures and captions, on the device."""

    pictures: tuple[EncodedPicture, ...]
    captions: torch.Tensor
    """(1 + captions, tokens, width): the empty caption's states, then each caption's once."""
    caption_rows: tuple[int, ...]
    """For each picture its row in ``captions``."""
    scaling_factor: float

    @property
    def buckets(self) -> dict[Size, tuple[int, ...]]:
        """Positions of the pictures of each size, in order of the sizes."""
        sizes = sorted({picture.size for picture in self.pictures})
        return {
            size: tuple(i for i, picture in enumerate(self.pictures) if picture.size == size)
            for size in sizes
        }

    def shape(self, batch: Batch) -> tuple[int, int, int, int]:
        """(n, c, h, w) of a batch's latents."""
        _, channels, height, width = self.pictures[batch[0]].mean.shape
        return len(batch), channels, height, width

    def latents(
        self, batch: Batch, mirrored: Sequence[bool], posterior: torch.Tensor
    ) -> torch.Tensor:
        """A sample of each picture's latents, (n, c, h, w), scaled for the denoiser.

        Args:
            posterior: standard normal, (n, c, h, w), on the device.
        """
        views = [(self.pictures[i], int(flip)) for i, flip in zip(batch, mirrored, strict=True)]
        mean = torch.stack([picture.mean[view] for picture, view in views])
        deviation = torch.stack([picture.deviation[view] for picture, view in views])
        return (mean + deviation * posterior) * self.scaling_factor

    def conditioning(self, batch: Batch, uncaptioned: Sequence[bool]) -> torch.Tensor:
        """Each picture's caption states, or the empty caption's: (n, tokens, width)."""
        rows = [
            0 if empty else self.caption_rows[i]
            for i, empty in zip(batch, uncaptioned, strict=True)
        ]
        return torch.stack([self.captions[row] for row in rows])


def encode_dataset(
    base: BaseModel,
    pictures: Iterable[tuple[Image.Image, Size]],
    captions: Sequence[str],
    *,
    mirrored: bool,
    device: torch.device,
) -> Dataset:
    """Encode every picture at its bucket's size, and every caption.

    Args:
        pictures: RGB pictures, each with the size to train it at; read one at a time.
        captions: one for each picture.
        mirrored: encode each picture's mirror image too.
    """
    distinct = list(dict.fromkeys(["", *captions]))
    states = encode_captions(base, distinct, device)
    with placed(base.vae, device):
        encoded = tuple(
            _encode_picture(base, picture, size, mirrored=mirrored, device=device)
            for picture, size in pictures
        )
    rows = tuple(distinct.index(caption) for caption in captions)
    return Dataset(encoded, states, rows, float(base.vae.config.scaling_factor))


@torch.no_grad()
def encode_captions(
    base: BaseModel, captions: Sequence[str], device: torch.device
) -> torch.Tensor:
    """The text encoder's states of each caption, (captions, tokens, width).

    As SD 1.5 reads them: padded and cut to the tokenizer's length, last layer.
    """
    with placed(base.text_encoder, device):
        states = []
        for caption in captions:
            tokens = base.tokenizer(
                caption,
                padding="max_length",
                max_length=base.tokenizer.model_max_length,
                truncation=True,
                return_tensors="pt",
            )
            states.append(base.text_encoder(tokens.input_ids.to(device)).last_hidden_state)
        return torch.cat(states).to(base.unet.dtype)


@torch.no_grad()
def _encode_picture(
    base: BaseModel, picture: Image.Image, size: Size, *, mirrored: bool, device: torch.device
) -> EncodedPicture:
    fitted = ImageOps.fit(picture, size, Image.Resampling.LANCZOS)
    views = [fitted, ImageOps.mirror(fitted)] if mirrored else [fitted]
    posteriors = [base.vae.encode(_pixels(view).to(device)).latent_dist for view in views]
    return EncodedPicture(
        size,
        torch.cat([posterior.mean for posterior in posteriors]),
        torch.cat([posterior.std for posterior in posteriors]),
    )


def _pixels(picture: Image.Image) -> torch.Tensor:
    """(1, 3, h, w) in [-1, 1]."""
    values = np.asarray(picture.convert("RGB"), dtype=np.float32) / 127.5 - 1.0
    return torch.from_numpy(values).permute(2, 0, 1)[None]
