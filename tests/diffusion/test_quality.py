"""The default execution has the same loss curve as the reference recipe, number by number."""

from __future__ import annotations

import pytest

from adapters.diffusion.base.model import BaseModel
from adapters.diffusion.execution import ExecutionOptions
from adapters.diffusion.trainer import DiffusionTrainer
from adapters.images.decode import decode
from domain.image import TrainingImage
from tests.diffusion.fake_cuda_graph import FakeGraphRecorder
from tests.diffusion.recipe import recipe
from tests.diffusion.runs import by_layer, plan_of

pytestmark = pytest.mark.integration

FAST = ExecutionOptions(make_recorder=FakeGraphRecorder)


def test_the_default_backend_has_the_loss_curve_and_weights_of_the_reference(
    base: BaseModel, images: tuple[TrainingImage, ...]
) -> None:
    plan = plan_of(images, epochs=8, batch_size=2, learning_rate=3e-3, validation_epochs=8)
    curve, weights = recipe(base, plan)
    fast = DiffusionTrainer(base, decode, execution=FAST)
    with fast.open(plan, None) as session:
        start = by_layer(session)
        while not session.finished:
            session.advance()
        found = by_layer(session)
        history, before = session.history, session.baseline
    assert [record.loss for record in history] == pytest.approx(curve, rel=2e-3)
    # Over the same noises and timesteps, so that chance has no part in it.
    assert before is not None
    first, last = before.evaluation_loss, history[-1].evaluation_loss
    assert first is not None
    assert last is not None
    assert last < first
    apart = (found - weights).norm() / (weights - start).norm()
    assert apart < 0.05
