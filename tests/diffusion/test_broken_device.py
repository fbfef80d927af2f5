"""A device that answers no more, however torch says so, breaks the trainer and not the job."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest
import torch

from adapters.diffusion.backend import Backend
from adapters.diffusion.base.model import BaseModel
from adapters.diffusion.device_errors import is_broken_device
from adapters.diffusion.oom import is_out_of_memory
from adapters.diffusion.trainer import DiffusionTrainer
from adapters.images.decode import decode
from application.ports import TrainerBroken
from domain.image import TrainingImage
from tests.diffusion.fake_cuda_graph import Tape
from tests.diffusion.runs import plan_of

pytestmark = pytest.mark.integration

Images = tuple[TrainingImage, ...]
CardError: type[RuntimeError] = getattr(torch, "AcceleratorError", RuntimeError)
ILLEGAL = "CUDA error: an illegal memory access was encountered"
DETAILS = "\nCUDA kernel errors might be asynchronously reported at some other API call."


@pytest.mark.parametrize(
    ("error", "broken"),
    [
        (CardError(ILLEGAL + DETAILS), True),
        (RuntimeError(ILLEGAL + DETAILS), True),
        (CardError("in other words"), CardError is not RuntimeError),
        (RuntimeError("CUDA error: device-side assert triggered"), True),
        (RuntimeError("CUDA error: uncorrectable ECC error encountered"), True),
        (
            RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx"),
            True,
        ),
        (RuntimeError("Triton Error [CUDA]: unspecified launch failure"), True),
        (torch.OutOfMemoryError("CUDA out of memory"), False),
        (CardError("CUDA error: out of memory" + DETAILS), False),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate"), False),
        (RuntimeError("Triton Error [CUDA]: out of memory"), False),
        (RuntimeError("shapes cannot be multiplied"), False),
        (ValueError(ILLEGAL), False),
    ],
)
def test_errors_of_a_card_are_told_from_a_lack_of_memory_and_from_defects(
    error: Exception, broken: bool
) -> None:
    assert is_broken_device(error) is broken
    assert not (broken and is_out_of_memory(error))


def fail(*_: Any, **__: Any) -> Any:
    raise CardError(ILLEGAL + DETAILS)


CALLS: dict[str, tuple[str, Callable[[Any], object]]] = {
    "advance": ("torch.autograd.backward", lambda session: session.advance()),
    "measurement": ("adapters.diffusion.evaluation.Evaluation.losses", lambda s: s.advance()),
    "checkpoint": (
        "adapters.diffusion.session.DiffusionSession._read_epoch",
        lambda s: s.checkpoint(),
    ),
    "weights": ("adapters.diffusion.session.encode_trained", lambda s: s.weights()),
    "previews": ("adapters.diffusion.session.draw_previews", lambda s: s.previews(adapted=True)),
}


@pytest.mark.parametrize("slots", [1, 2])
@pytest.mark.parametrize("call", CALLS)
def test_a_session_on_a_broken_device_says_so_and_so_does_leaving_it(
    base: BaseModel, images: Images, monkeypatch: pytest.MonkeyPatch, call: str, slots: int
) -> None:
    trainer = DiffusionTrainer(base, decode, slots=slots)
    place, ask = CALLS[call]
    stack = ExitStack()
    session = stack.enter_context(trainer.open(plan_of(images[:1], validation_epochs=1), None))
    monkeypatch.setattr(place, fail)
    # As torch has it, every later call fails, that which gives memory back too.
    monkeypatch.setattr(DiffusionTrainer, "_empty_cache", fail)
    with pytest.raises(TrainerBroken) as broken:
        ask(session)
    assert str(broken.value) == ILLEGAL
    with pytest.raises(TrainerBroken):
        stack.close()


@pytest.mark.parametrize("slots", [1, 2])
def test_a_run_cannot_be_opened_on_a_broken_device(
    base: BaseModel, images: Images, monkeypatch: pytest.MonkeyPatch, slots: int
) -> None:
    trainer = DiffusionTrainer(base, decode, slots=slots)
    monkeypatch.setattr("adapters.diffusion.trainer.prepare", fail)
    with pytest.raises(TrainerBroken), trainer.open(plan_of(images[:1]), None):
        pass


def test_a_device_that_breaks_while_a_step_is_recorded_is_no_matter_of_recording(
    base: BaseModel, images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Breaking(Tape):
        def record(self, function: Callable[[], None]) -> Callable[[], None]:
            monkeypatch.setattr(torch.autograd, "backward", fail)
            return fail()

    trainer = DiffusionTrainer(
        base, decode, backend=Backend(cuda_graphs=True), make_recorder=Breaking
    )
    with trainer.open(plan_of(images[:1], epochs=4), None) as session:
        session.advance()
        session.advance()
        with pytest.raises(TrainerBroken):
            session.advance()


def test_other_errors_stay_what_they_are(
    trainer: DiffusionTrainer, images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    def defect(*_: Any) -> None:
        raise RuntimeError("shapes cannot be multiplied")

    monkeypatch.setattr(torch.autograd, "backward", defect)
    with (
        trainer.open(plan_of(images[:1]), None) as session,
        pytest.raises(RuntimeError, match="shapes"),
    ):
        session.advance()
