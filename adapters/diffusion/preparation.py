"""From a plan to what a session works on: captions, encoded pictures, requests for previews."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from PIL import Image

from adapters.diffusion.base_model import BaseModel
from adapters.diffusion.captions import caption_of
from adapters.diffusion.dataset import Dataset, encode_dataset
from adapters.diffusion.preview import PreviewRequest, request_previews
from application.ports import TrainingPlan
from domain.buckets import bucket_of


@dataclass(frozen=True)
class Material:
    """What a run is made of, on the device."""

    captions: list[str]
    """Of the pictures, in their order."""
    dataset: Dataset
    previews: PreviewRequest


def prepare(
    base: BaseModel,
    plan: TrainingPlan,
    decode: Callable[[bytes], Image.Image],
    device: torch.device,
) -> Material:
    """Encode a plan's pictures and captions once and for all.

    Args:
        decode: a picture file's bytes to an upright RGB picture.

    Raises:
        torch.OutOfMemoryError: the device is too full.
    """
    parameters = plan.parameters
    captions = [
        caption_of(picture, plan.tags, parameters.trigger_word) for picture in plan.pictures
    ]
    decoded = (decode(picture.data) for picture in plan.pictures)
    sized = ((image, bucket_of(*image.size, parameters.resolution)) for image in decoded)
    dataset = encode_dataset(base, sized, captions, mirrored=parameters.random_flip, device=device)
    return Material(captions, dataset, request_previews(base, parameters, captions, device))
