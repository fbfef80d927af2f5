"""One run on several devices is the run on one. The processor stands for each of them here: a
replica knows nothing of where the others are."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adapters.diffusion.base.denoiser import replica_of
from adapters.diffusion.base.model import BaseModel
from adapters.diffusion.data.step_inputs import LEARNING_RATE_SLOTS, StepInputs
from adapters.diffusion.session import DiffusionSession
from adapters.diffusion.step.spread import devices_that_pay, split
from adapters.diffusion.strategy import PLAIN, Strategy
from adapters.diffusion.trainer import DiffusionTrainer
from adapters.pillow import decode
from application.ports import EpochRecord
from domain.failure import FailureCode, TrainingFailed
from domain.picture import Picture
from tests.diffusion.runs import EVERY_OPTION, drive, plan_of, run, weights_of
from tests.diffusion.tape import Tape

pytestmark = pytest.mark.integration

Pictures = tuple[Picture, ...]
CPU = torch.device("cpu")


def trainer_on(
    base: BaseModel, devices: int, strategy: Strategy = PLAIN, **keywords: Any
) -> DiffusionTrainer:
    helpers = [CPU] * (devices - 1)
    return DiffusionTrainer(base, decode, CPU, strategy=strategy, helpers=helpers, **keywords)


def assert_alike(found: Any, wanted: Any) -> None:
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        assert isinstance(one, EpochRecord)
        assert one.loss == pytest.approx(other.loss, rel=2e-4)
        assert one.learning_rate == other.learning_rate
        assert one.gradient_norm == pytest.approx(other.gradient_norm, rel=2e-3)


@pytest.mark.parametrize(
    ("devices", "strategy"),
    [(2, PLAIN), (8, Strategy(flat_path=True, channels_last=True)), (3, Strategy(flat_path=True))],
)
def test_a_run_on_several_devices_ends_like_one_on_one(
    base: BaseModel, pictures: Pictures, devices: int, strategy: Strategy
) -> None:
    """Four squares make a batch of three and one of one, the fifth picture one of its own."""
    plan = plan_of(pictures, **EVERY_OPTION, epochs=2, batch_size=3, lr_warmup_steps=2)
    found = run(trainer_on(base, devices, strategy), plan)
    assert_alike(found.history, run(trainer_on(base, 1, strategy), plan).history)


@pytest.mark.parametrize(
    "options",
    [{"use_dora": True}, {"lora_targets": "attention+ff+conv"}, {"use_rslora": True, "rank": 8}],
)
def test_adapters_of_every_kind_can_be_spread(
    base: BaseModel, pictures: Pictures, options: dict[str, Any]
) -> None:
    plan = plan_of(pictures[:4], epochs=1, batch_size=4, **options)
    found = run(trainer_on(base, 2), plan)
    assert_alike(found.history, run(trainer_on(base, 1), plan).history)


@pytest.mark.parametrize("compute", [torch.bfloat16, torch.float16])
def test_low_precision_and_its_scaled_losses_can_be_spread(
    base: BaseModel, pictures: Pictures, compute: torch.dtype
) -> None:
    own = replace(base, unet=copy.deepcopy(base.unet))
    strategy = Strategy(compute=compute, flat_path=True)
    plan = plan_of(pictures[:4], epochs=2, batch_size=4, learning_rate=2e-3)
    found = run(trainer_on(own, 2, strategy), plan).history
    for one, other in zip(found, run(trainer_on(own, 1, strategy), plan).history, strict=True):
        assert one.loss == pytest.approx(other.loss, rel=0.01)
        assert one.gradient_norm == pytest.approx(other.gradient_norm, rel=0.03)


def test_the_gradient_is_that_of_the_whole_batch(base: BaseModel, pictures: Pictures) -> None:
    """AdamW's first step tells only its direction: its first moment is a tenth of it."""
    moments = []
    plan = plan_of(pictures[:4], epochs=1, batch_size=4, max_grad_norm=1e6)
    for devices in (1, 3):
        with trainer_on(base, devices).open(plan, None) as session:
            session.advance()
            assert isinstance(session, DiffusionSession)
            (moment,) = (
                tensor
                for name, tensor in session.update.optimizer_state.tensors.items()
                if name.endswith("exp_avg")
            )
            moments.append(moment.clone())
    assert moments[0].abs().max() > 0
    torch.testing.assert_close(moments[1], moments[0], rtol=1e-3, atol=1e-6)


def test_the_denoiser_of_every_device_sees_its_share(
    base: BaseModel, pictures: Pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(pictures[:4], epochs=1, batch_size=4)
    with trainer_on(base, 3).open(plan, None) as session:
        assert isinstance(session, DiffusionSession)
        seen: list[int] = []
        for place in session._steps.places:
            forward = place.unet.forward

            def noting(noisy: Any, *rest: Any, forward: Any = forward, **more: Any) -> Any:
                seen.append(len(noisy))
                return forward(noisy, *rest, **more)

            monkeypatch.setattr(place.unet, "forward", noting)
        session.run_step()
        assert seen == [2, 1, 1]


def test_every_device_records_its_own_steps(base: BaseModel, pictures: Pictures) -> None:
    recorders: list[Tape] = []

    def recorder() -> Tape:
        recorders.append(Tape())
        return recorders[-1]

    plan = plan_of(pictures[:4], epochs=6, batch_size=4)
    captured = trainer_on(base, 2, Strategy(capture=True), recorder=recorder)
    found = run(captured, plan)
    assert [(one.recorded, one.replayed) for one in recorders] == [(1, 4), (1, 4)]
    assert found == run(trainer_on(base, 2), plan)


@pytest.mark.parametrize(("before", "after"), [(1, 3), (3, 1)])
def test_a_checkpoint_goes_on_with_more_or_fewer_devices(
    base: BaseModel, pictures: Pictures, before: int, after: int
) -> None:
    plan = plan_of(pictures, epochs=2, batch_size=3)
    first = run(trainer_on(base, before), plan, steps=2)
    found = run(trainer_on(base, after), plan, resume=first.checkpoint)
    assert_alike(found.history, run(trainer_on(base, 1), plan).history)


def test_a_resumed_run_on_the_same_devices_gives_the_same_bytes(
    base: BaseModel, pictures: Pictures
) -> None:
    plan = plan_of(pictures, epochs=2, batch_size=3)
    first = run(trainer_on(base, 2), plan, steps=2)
    assert run(trainer_on(base, 2), plan, resume=first.checkpoint) == run(
        trainer_on(base, 2), plan
    )


def test_after_a_run_every_denoiser_is_the_base_and_the_next_run_finds_it(
    base: BaseModel, pictures: Pictures
) -> None:
    before = copy.deepcopy(base.unet.state_dict())
    trainer = trainer_on(base, 3, Strategy(flat_path=True))
    first = run(trainer, plan_of(pictures, epochs=1, batch_size=3))
    replicas = list(trainer._replicas)
    assert len(replicas) == 2
    assert run(trainer, plan_of(pictures, epochs=1, batch_size=3)) == first
    assert all(one is other for one, other in zip(trainer._replicas, replicas, strict=True))
    for unet in (base.unet, *replicas):
        after = unet.state_dict()
        assert after.keys() == before.keys()
        assert all(torch.equal(after[name], before[name]) for name in before)


def limited(forward: Callable[..., Any], most: int) -> Callable[..., Any]:
    """A denoiser on a device with memory for ``most`` pictures a pass."""

    def in_its_limits(noisy: Any, *rest: Any, **more: Any) -> Any:
        if torch.is_grad_enabled() and len(noisy) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(noisy, *rest, **more)

    return in_its_limits


@pytest.mark.parametrize("which", [0, 1])
def test_where_one_device_is_full_all_take_fewer_pictures_a_pass(
    base: BaseModel,
    pictures: Pictures,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    which: int,
) -> None:
    plan = plan_of(pictures[:4], epochs=2, batch_size=4)
    wanted = run(trainer_on(base, 2), plan)
    with trainer_on(base, 2).open(plan, None) as session:
        assert isinstance(session, DiffusionSession)
        unet = session._steps.places[which].unet
        monkeypatch.setattr(unet, "forward", limited(unet.forward, most=1))
        drive(session)
        # Two pictures on each, so that the next degree is one at once.
        assert caplog.text.count("out of memory, going on with") == 1
        assert_alike(session.history, wanted.history)


def test_a_device_that_holds_not_even_one_pictures_step_is_left_out(
    base: BaseModel,
    pictures: Pictures,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    plan = plan_of(pictures[:4], epochs=3, batch_size=4)
    wanted = run(trainer_on(base, 1), plan)
    with trainer_on(base, 3).open(plan, None) as session:
        assert isinstance(session, DiffusionSession)
        session.advance()
        first, full, other = (place.unet for place in session._steps.places)
        monkeypatch.setattr(full, "forward", limited(full.forward, most=0))
        drive(session)
        assert caplog.text.count("out of memory on cpu, going on without it") == 1
        assert [place.unet for place in session._steps.places] == [first, other]
        assert not first.is_gradient_checkpointing
        assert_alike(session.history, wanted.history)


def test_where_nothing_fits_the_job_fails_for_lack_of_memory(
    base: BaseModel, pictures: Pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    with trainer_on(base, 2).open(plan_of(pictures[:4], batch_size=4), None) as session:
        assert isinstance(session, DiffusionSession)
        first, replica = (place.unet for place in session._steps.places)
        monkeypatch.setattr(first, "forward", limited(first.forward, most=0))
        with pytest.raises(TrainingFailed) as failed:
            session.advance()
        assert failed.value.failure.code == FailureCode.GPU_OOM
        assert replica.is_gradient_checkpointing
    assert not replica.is_gradient_checkpointing
    assert not first.is_gradient_checkpointing


def test_a_divergence_is_undone_on_every_device(base: BaseModel, pictures: Pictures) -> None:
    def disturbed(devices: int) -> Any:
        plan = plan_of(pictures[:4], epochs=4, batch_size=4)
        with trainer_on(base, devices).open(plan, None) as session:
            session.advance()
            session.advance()
            weights_of(session)[3] = float("nan")
            drive(session)
            return session.history

    assert_alike(disturbed(3), disturbed(1))


def test_a_device_without_room_for_the_base_is_left_out(
    base: BaseModel,
    pictures: Pictures,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def full(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    plan = plan_of(pictures[:4], epochs=1, batch_size=4)
    monkeypatch.setattr("adapters.diffusion.trainer.replica_of", full)
    trainer = trainer_on(base, 3)
    assert run(trainer, plan) == run(trainer_on(base, 1), plan)
    assert caplog.text.count("no room for the base model") == 2
    caplog.clear()
    run(trainer, plan)
    assert "no room" not in caplog.text


def test_a_device_without_room_gives_its_place_to_the_next(
    base: BaseModel, pictures: Pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = [True]

    def once_full(*given: Any) -> Any:
        if full:
            full.pop()
            raise RuntimeError("CUDA error: out of memory")
        return replica_of(*given)

    monkeypatch.setattr("adapters.diffusion.trainer.replica_of", once_full)
    with trainer_on(base, 3).open(plan_of(pictures[:2], batch_size=2), None) as session:
        assert isinstance(session, DiffusionSession)
        assert len(session._steps.places) == 2


@pytest.mark.parametrize(
    ("options", "devices"),
    [
        ({"batch_size": 1}, 1),
        ({"batch_size": 6}, 6),
        ({"batch_size": 6, "lora_dropout": 0.1}, 1),
        ({"batch_size": 6, "train_text_encoder": True}, 1),
    ],
)
def test_a_run_that_cannot_be_spread_is_left_whole(
    pictures: Pictures, options: dict[str, Any], devices: int
) -> None:
    assert devices_that_pay(plan_of(pictures, **options).parameters) == devices


@given(count=st.integers(1, 16), most=st.integers(1, 9))
def test_a_batch_is_split_evenly_and_whole(count: int, most: int) -> None:
    shape = (count, 4, 2, 2)
    numbers = count * 16
    whole = StepInputs(
        size=(16, 16),
        shape=shape,
        floats=torch.arange(2 * numbers + LEARNING_RATE_SLOTS, dtype=torch.float32),
        indices=torch.arange(3 * count).view(3, count),
        rate=0.1,
    )
    parts = split(whole, most)
    sizes = [part.count for part in parts]
    assert len(parts) == min(count, most)
    assert max(sizes) - min(sizes) <= 1
    assert sizes[-1] == min(sizes)
    assert torch.equal(torch.cat([part.noise for part in parts]), whole.noise)
    assert torch.equal(torch.cat([part.posterior for part in parts]), whole.posterior)
    assert torch.equal(torch.cat([part.indices for part in parts], dim=1), whole.indices)
    assert all(torch.equal(part.learning_rate, whole.learning_rate) for part in parts)
