"""Prepare a training plan: make captions, encode images, set up previews."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from PIL import Image

from adapters.diffusion.base.model import BaseModel
from adapters.diffusion.data.captions import (
    VARIANTS,
    caption_of,
    end_of_word,
    varied_caption,
    with_trigger_word,
)
from adapters.diffusion.data.dataset import EncodedDataset, encode_dataset
from adapters.diffusion.data.rng import generator_for
from adapters.diffusion.data.text import max_length
from adapters.diffusion.preview import STEPS, PreviewRequest, request_previews
from adapters.diffusion.style_measures import encoder_statistics
from domain.buckets import bucket_of
from domain.parameters import TrainingParameters
from domain.training_plan import TrainingPlan

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PreparedData:
    """A run's inputs. Tensors are on the training device."""

    captions: list[str]
    """One per image, in the plan's order."""
    dataset: EncodedDataset
    previews: PreviewRequest
    statistics: torch.Tensor
    """(distinct images, features) on the CPU: ``encoder_statistics``; of mirrored ones too."""


def prepare(
    base: BaseModel,
    plan: TrainingPlan,
    decode: Callable[[bytes], Image.Image],
    device: torch.device,
    preview_steps: int = STEPS,
) -> PreparedData:
    """Encode the images and captions of a plan.

    ``decode`` and ``preview_steps`` are those of ``DiffusionTrainer``.

    Raises:
        torch.OutOfMemoryError: not enough memory on ``device``.
    """
    parameters = plan.parameters
    numbers = {image: number for number, image in enumerate(dict.fromkeys(plan.images))}
    uses = [numbers[image] for image in plan.images]
    distinct = replace(plan, images=tuple(numbers))
    captions = _captions(base, distinct)
    side = parameters.resolution
    sized = (
        (decode(image.data), bucket_of(image.facts.width, image.facts.height, side))
        for image in distinct.images
    )
    with encoder_statistics(base.vae) as statistics:
        dataset = encode_dataset(
            base,
            sized,
            captions,
            uses=uses,
            flipped=parameters.random_flip,
            device=device,
            variants=_variants(base, distinct),
            max_tokens=parameters.max_token_length,
        )
    previews = request_previews(base, parameters, captions, device, preview_steps)
    in_order = [captions[number] for number in uses]
    return PreparedData(in_order, dataset, previews, torch.cat(statistics))


def _captions(base: BaseModel, plan: TrainingPlan) -> list[str]:
    """One caption per image. Warns if some are cut."""
    parameters = plan.parameters
    captions = [
        _triggered(base, caption_of(image, plan.tags, parameters), parameters)
        for image in plan.images
    ]
    read = max_length(base, parameters.max_token_length)
    whole = base.tokenizer(captions, verbose=False).input_ids
    cut = [i for i, tokens in enumerate(whole) if len(tokens) > read]
    if cut:
        log.warning(
            "the captions of %d images (first: %s) are cut to %d tokens: shorten them, or raise "
            "max_token_length",
            len(cut),
            plan.images[cut[0]].name,
            read - 2,  # without the begin and end tokens
        )
    return captions


def _variants(base: BaseModel, plan: TrainingPlan) -> list[list[str]]:
    """Variants of each image's caption for training; empty if captions do not vary."""
    parameters = plan.parameters
    if not parameters.varies_captions:
        return []
    variants = []
    for index, image in enumerate(plan.images):
        caption = caption_of(image, plan.tags, parameters)
        generator = generator_for(parameters.seed, "caption variants", index)
        variants.append(
            [
                _triggered(base, varied_caption(caption, parameters, generator), parameters)
                for _ in range(VARIANTS)
            ]
        )
    return variants


def _triggered(base: BaseModel, caption: str, parameters: TrainingParameters) -> str:
    """The caption with the trigger word, which is repeated at the front if it is beyond the token
    limit."""
    word = parameters.trigger_word
    text = with_trigger_word(caption, word)
    if word is None:
        return text
    head = text[: end_of_word(text, word)]
    read = max_length(base, parameters.max_token_length)
    if len(base.tokenizer(head, verbose=False).input_ids) > read:
        return f"{word}, {text}"
    return text
