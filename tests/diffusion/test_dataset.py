"""Images and captions encoded in a batch equal those encoded one by one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from PIL import Image

from adapters.diffusion.base.model import BaseModel
from adapters.diffusion.data import dataset as dataset_module
from adapters.diffusion.data import text as text_module
from adapters.diffusion.data.dataset import (
    EncodedDataset,
    encode_dataset,
)
from adapters.diffusion.data.text import encode_captions
from adapters.images.decode import decode
from domain.image import TrainingImage

pytestmark = pytest.mark.integration

CPU = torch.device("cpu")
SIZES = [(64, 64), (64, 64), (48, 80), (64, 64), (48, 80)]


def encoded(
    base: BaseModel, images: tuple[TrainingImage, ...], *, flipped: bool
) -> EncodedDataset:
    decoded_images = [
        (decode(image.data), size) for image, size in zip(images, SIZES, strict=True)
    ]
    captions = ["one", "two", "one", "", "three"]
    return encode_dataset(base, decoded_images, captions, flipped=flipped, device=CPU)


@pytest.mark.parametrize("flipped", [False, True])
def test_encoding_in_batches_equals_encoding_one_by_one(
    base: BaseModel,
    images: tuple[TrainingImage, ...],
    monkeypatch: pytest.MonkeyPatch,
    flipped: bool,
) -> None:
    passes: list[int] = []
    encode = base.vae.encode

    def counted(pixels: torch.Tensor) -> Any:
        passes.append(len(pixels))
        return encode(pixels)

    monkeypatch.setattr(base.vae, "encode", counted)
    together = encoded(base, images, flipped=flipped)
    views = 1 + flipped
    assert sorted(passes) == [2 * views, 3 * views]
    monkeypatch.setattr(dataset_module, "PIXELS_AT_ONCE", 1)
    monkeypatch.setattr(text_module, "CAPTIONS_AT_ONCE", 1)
    alone = encoded(base, images, flipped=flipped)
    assert set(passes[2:]) == {1}
    assert together.sizes == alone.sizes == tuple(SIZES)
    for size, found in together.posteriors.items():
        assert len(found[0]) == SIZES.count(size) * views
        torch.testing.assert_close(found, alone.posteriors[size], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(together.captions, alone.captions, rtol=1e-4, atol=1e-4)
    assert together.caption_rows == alone.caption_rows == (1, 2, 1, 0, 3)


def test_images_are_encoded_as_soon_as_a_batch_is_complete(
    base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So the memory that pixels take does not depend on the number of images."""
    read, read_at_pass = 0, []

    def images() -> Iterator[tuple[Image.Image, tuple[int, int]]]:
        nonlocal read
        for size in SIZES:
            read += 1
            yield Image.new("RGB", size), size

    encode = base.vae.encode

    def noted(pixels: torch.Tensor) -> Any:
        read_at_pass.append((read, len(pixels)))
        return encode(pixels)

    monkeypatch.setattr(base.vae, "encode", noted)
    monkeypatch.setattr(dataset_module, "PIXELS_AT_ONCE", 2 * 64 * 64)
    encode_dataset(base, images(), ["a"] * 5, flipped=False, device=CPU)
    assert read_at_pass == [(2, 2), (5, 2), (5, 1)]


def test_colours_are_scaled_for_the_autoencoder(base: BaseModel) -> None:
    image = Image.new("RGB", (64, 64), (255, 0, 51))
    dataset = encode_dataset(base, [(image, (64, 64))], [""], flipped=False, device=CPU)
    pixels = torch.tensor([1.0, -1.0, -0.6]).view(1, 3, 1, 1).expand(1, 3, 64, 64)
    with torch.no_grad():
        wanted = base.vae.encode(pixels).latent_dist
    found = dataset.posteriors[64, 64]
    torch.testing.assert_close(found, (wanted.mean, wanted.std), rtol=1e-3, atol=1e-4)


def test_rows_index_the_images_views_and_captions(
    base: BaseModel, images: tuple[TrainingImage, ...]
) -> None:
    dataset = encoded(base, images, flipped=True)
    batch = (3, 0)
    rows = torch.tensor(dataset.rows(batch, (True, False)))
    noise = torch.zeros(dataset.shape(batch))
    sample = dataset.sample((64, 64), rows, noise) / dataset.scaling_factor
    mean, _ = dataset.posteriors[64, 64]
    torch.testing.assert_close(sample[0], mean[5])  # the flipped view of the third square
    torch.testing.assert_close(sample[1], mean[0])
    states = dataset.captions[dataset.rows_of_captions((1, 2), (True, False))]
    empty, one = encode_captions(base, ["", "one"], CPU)
    torch.testing.assert_close(states, torch.stack([empty, one]), rtol=1e-4, atol=1e-4)
