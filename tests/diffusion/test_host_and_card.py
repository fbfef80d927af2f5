"""What lies on the host, or on another card, does not meet what lies on a card; and within an
epoch the host does not wait for the card."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import torch

from adapters.diffusion.base.model import BaseModel, load_base
from adapters.diffusion.session import DiffusionSession
from adapters.diffusion.strategy import Strategy
from adapters.diffusion.trainer import DiffusionTrainer
from adapters.images.decode import decode
from domain.image import TrainingImage
from tests.diffusion.conftest import SMALL_BASE
from tests.diffusion.fake_device import CARD, BlankCard, let_adamw_be_fused_there, move_to_card
from tests.diffusion.runs import EVERY_OPTION, plan_of

pytestmark = pytest.mark.integration

Images = tuple[TrainingImage, ...]
HOST = torch.device("cpu")
BFLOAT16 = Strategy(compute=torch.bfloat16, flat_path=True, channels_last=True, fused=True)
FLOAT16 = Strategy(compute=torch.float16)


@pytest.fixture
def own_base() -> BaseModel:
    """To be moved and changed."""
    return load_base(str(SMALL_BASE), device=HOST)


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Iterator[BlankCard]:
    let_adamw_be_fused_there(monkeypatch)
    monkeypatch.setattr("adapters.diffusion.preview.STEPS", 1)
    with BlankCard() as card:
        yield card


@pytest.mark.parametrize(
    ("strategy", "options"),
    [
        (BFLOAT16, EVERY_OPTION),
        (FLOAT16, {"validation_epochs": 1, "lora_dropout": 0.1}),
        (BFLOAT16, {"train_text_encoder": True, "text_encoder_lr": 1e-5}),
        (BFLOAT16, {"use_dora": True}),
    ],
)
def test_a_run_keeps_to_its_card_and_waits_for_nothing_within_an_epoch(
    own_base: BaseModel,
    images: Images,
    card: BlankCard,
    strategy: Strategy,
    options: dict[str, Any],
) -> None:
    move_to_card(own_base)
    plan = plan_of(images[:2], epochs=2, sample_prompts=("a house",), **options)
    trainer = DiffusionTrainer(own_base, decode, CARD, strategy=strategy)
    with trainer.open(plan, None) as session:
        assert isinstance(session, DiffusionSession)
        session.next_inputs()  # drawn and sent, for the whole epoch
        for _ in range(2):
            card.waited.clear()
            while not session.advance().epoch_finished:
                assert card.waited == []
            assert card.waited
        assert session.finished
        assert session.checkpoint().data
        assert session.weights()
        card.takes_single_numbers = True  # diffusers' schedules lie on the host
        assert len(session.previews(adapted=True)) == 1


def test_runs_that_train_together_keep_to_their_card_and_wait_for_nothing_within_an_epoch(
    own_base: BaseModel, images: Images, card: BlankCard
) -> None:
    move_to_card(own_base)
    trainer = DiffusionTrainer(own_base, decode, CARD, strategy=BFLOAT16, slots=2, patience=0.0)
    plans = [plan_of(images[:2], epochs=2, seed=seed, **EVERY_OPTION) for seed in (1, 2)]
    with ExitStack() as stack:
        sessions = [stack.enter_context(trainer.open(plan, None)) for plan in plans]
        assert trainer._ensemble is not None
        passing = BlankCard()
        trainer._ensemble._passing.submit(passing.__enter__).result()
        for session in sessions:
            assert isinstance(session, DiffusionSession)
            session.next_inputs()
        card.waited.clear()
        for session in sessions:
            session.advance()
        assert (card.waited, passing.waited) == ([], [])
