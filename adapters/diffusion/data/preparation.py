"""Prepare a training plan: make captions, encode images, set up previews."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch
from PIL import Image

from adapters.diffusion.base.model import BaseModel
from adapters.diffusion.data.captions import caption_of, end_of_word
from adapters.diffusion.data.dataset import EncodedDataset, encode_dataset
from adapters.diffusion.preview import PreviewRequest, request_previews
from application.ports import TrainingPlan
from domain.buckets import bucket_of

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PreparedData:
    """A run's inputs. Tensors are on the training device."""

    captions: list[str]
    """One per image, in the plan's order."""
    dataset: EncodedDataset
    previews: PreviewRequest


def prepare(
    base: BaseModel,
    plan: TrainingPlan,
    decode: Callable[[bytes], Image.Image],
    device: torch.device,
) -> PreparedData:
    """Encode the images and captions of a plan.

    Args:
        decode: turns an image file's bytes into an upright RGB image.

    Raises:
        torch.OutOfMemoryError: not enough memory on ``device``.
    """
    parameters = plan.parameters
    captions = _captions(base, plan)
    sized = (
        (
            decode(image.data),
            bucket_of(image.facts.width, image.facts.height, parameters.resolution),
        )
        for image in plan.images
    )
    dataset = encode_dataset(base, sized, captions, flipped=parameters.random_flip, device=device)
    return PreparedData(captions, dataset, request_previews(base, parameters, captions, device))


def _captions(base: BaseModel, plan: TrainingPlan) -> list[str]:
    """One caption per image. Where the trigger word lies beyond the text encoder's token
    limit, it is repeated at the front."""
    trigger_word = plan.parameters.trigger_word
    captions = [caption_of(image, plan.tags, trigger_word) for image in plan.images]
    read = base.tokenizer.model_max_length
    whole = base.tokenizer(captions, verbose=False).input_ids
    cut = [i for i, tokens in enumerate(whole) if len(tokens) > read]
    if cut:
        log.warning(
            "captions are cut to the %d tokens that are read: %d of them, the first that of %s",
            read - 2,  # without the begin and end tokens
            len(cut),
            plan.images[cut[0]].name,
        )
    if trigger_word is None:
        return captions
    for i in cut:
        head = captions[i][: end_of_word(captions[i], trigger_word)]
        if len(base.tokenizer(head, verbose=False).input_ids) > read:
            captions[i] = f"{trigger_word}, {captions[i]}"
    return captions
