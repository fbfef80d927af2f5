"""Runs on shuffled and on long captions: reproducible, resumable, and trained on all tokens."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from adapters.diffusion.base.model import BaseModel
from adapters.diffusion.data.preparation import prepare
from adapters.diffusion.trainer import DiffusionTrainer
from adapters.images.decode import decode
from domain.image import TrainingImage
from domain.training_plan import TrainingPlan
from tests.diffusion.runs import plan_of, run

pytestmark = pytest.mark.integration

TAGS = "red circle, blue star, ring, cross, paper"
LONG = ", ".join(["a red circle"] * 24) + ", a blue star"
"""A caption whose last words come after the first 75 tokens."""


def worded(images: tuple[TrainingImage, ...], caption: str, **parameters: Any) -> TrainingPlan:
    return plan_of([replace(image, caption=caption) for image in images[:2]], **parameters)


def test_steps_train_on_a_bounded_number_of_variants_that_the_seed_chooses(
    base: BaseModel, images: tuple[TrainingImage, ...]
) -> None:
    def texts(**parameters: Any) -> tuple[str, ...]:
        plan = worded(images, TAGS, shuffle_caption=True, keep_tokens=1, **parameters)
        prepared = prepare(base, plan, decode, torch.device("cpu"))
        rows = prepared.dataset.variant_rows
        assert [len(variants) for variants in rows] == [8, 8]
        return prepared.dataset.texts

    found = texts()
    assert found[:2] == ("", TAGS)
    assert all(text.startswith("red circle, ") for text in found[1:])
    assert all(sorted(text.split(", ")) == sorted(TAGS.split(", ")) for text in found[1:])
    assert len(found) > 8
    assert texts() == found
    assert texts(seed=1) != found
    assert all(text.startswith("zxc, red circle, ") for text in texts(trigger_word="zxc")[1:])


def test_a_run_on_variants_resumes_exactly_and_differs_from_one_without(
    trainer: DiffusionTrainer, images: tuple[TrainingImage, ...]
) -> None:
    options = {"shuffle_caption": True, "caption_tag_dropout_rate": 0.4, "validation_epochs": 0}
    plan = worded(images, TAGS, **options)
    uninterrupted = run(trainer, plan)
    part = run(trainer, plan, steps=2)
    assert run(trainer, plan, resume=part.checkpoint).weights == uninterrupted.weights
    plain = run(trainer, worded(images, TAGS))
    assert plain.history[-1].loss != uninterrupted.history[-1].loss


@pytest.mark.parametrize("train_text_encoder", [False, True])
def test_words_beyond_75_tokens_count_with_a_longer_limit(
    trainer: DiffusionTrainer, images: tuple[TrainingImage, ...], train_text_encoder: bool
) -> None:
    def losses(caption: str, max_token_length: int) -> list[tuple[float, float | None]]:
        plan = worded(
            images,
            caption,
            max_token_length=max_token_length,
            train_text_encoder=train_text_encoder,
            validation_epochs=1,
            epochs=1,
            sample_prompts=(caption,),
        )
        with trainer.open(plan, None) as session:
            while not session.finished:
                session.advance()
            assert len(session.previews(with_lora=True)) == 1
            return [(record.loss, record.evaluation_loss) for record in session.history]

    other = LONG.replace("blue star", "green ring")
    assert losses(LONG, 75) == losses(other, 75)
    assert losses(LONG, 150) != losses(other, 150)
