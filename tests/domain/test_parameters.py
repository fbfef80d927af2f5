import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.limits import InvalidParameter
from domain.parameters import (
    LIMITS,
    PARAMETER_NAMES,
    LearningRateSchedule,
    RequestedParameters,
    TrainingParameters,
    default_epochs,
)


@pytest.mark.parametrize(
    ("images", "epochs"),
    [(1, 500), (10, 500), (11, 480), (15, 400), (20, 300), (29, 120), (30, 100), (100, 100)],
)
def test_default_epochs_fall_from_500_at_10_images_to_100_at_30(images: int, epochs: int) -> None:
    assert default_epochs(images) == epochs


def test_the_defaults_are_those_of_the_platform() -> None:
    parameters = RequestedParameters().resolve(image_count=20, native_resolution=512)
    assert parameters == TrainingParameters(
        epochs=300, resolution=512, rank=8, learning_rate=1e-4, batch_size=1
    )
    assert parameters.network_alpha == 8.0


def test_given_parameters_override_defaults() -> None:
    asked = RequestedParameters({"epochs": 7, "resolution": 768, "sample_prompts": ["a cat"]})
    parameters = asked.resolve(image_count=20, native_resolution=512)
    assert (parameters.epochs, parameters.resolution) == (7, 768)
    assert parameters.sample_prompts == ("a cat",)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 0),
        ("epochs", 10_001),
        ("epochs", 10.0),
        ("epochs", True),
        ("epochs", "10"),
        ("resolution", 500),
        ("resolution", 0),
        ("learning_rate", 0.0),
        ("learning_rate", -1e-4),
        ("learning_rate", 1.0),
        ("learning_rate", math.nan),
        ("learning_rate", math.inf),
        ("learning_rate", 10**400),
        ("learning_rate", "1e-4"),
        ("batch_size", 0),
        ("batch_size", 65),
        ("rank", 0),
        ("rank", 257),
        ("alpha", 0),
        ("seed", -1),
        ("seed", 2**32),
        ("trigger_word", ""),
        ("trigger_word", "x" * 101),
        ("sample_prompts", ["a"] * 9),
        ("sample_prompts", [" "]),
        ("sample_prompts", [3]),
        ("sample_prompts", "a cat"),
        ("sample_prompts", 5),
        ("lr_scheduler", "sawtooth"),
        ("lr_warmup_steps", -1),
        ("weight_decay", 2.0),
        ("weight_decay", True),
        ("max_grad_norm", 0),
        ("snr_gamma", 0),
        ("noise_offset", 1.1),
        ("random_flip", 1),
        ("caption_dropout", -0.1),
        ("lora_targets", "everything"),
        ("lora_targets", ["attention"]),
        ("lora_dropout", 1.0),
        ("use_rslora", "yes"),
        ("use_dora", 1),
        ("train_text_encoder", "yes"),
        ("text_encoder_lr", 0),
        ("text_encoder_lr", 1.0),
        ("optimizer", "lion"),
        ("optimizer", None),
        ("lr_num_cycles", 0),
        ("lr_power", 0),
        ("validation_split", 0.6),
        ("validation_epochs", -1),
    ],
)
def test_a_value_out_of_range_is_named_with_its_remedy(name: str, value: Any) -> None:
    with pytest.raises(InvalidParameter) as caught:
        RequestedParameters({name: value})
    assert caught.value.name == name
    assert "give" in caught.value.remedy


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 1),
        ("epochs", 10_000),
        ("learning_rate", 0.1),
        ("weight_decay", 0.0),
        ("trigger_word", "x" * 100),
        ("sample_prompts", ("x" * 500,) * 8),
    ],
)
def test_ranges_are_inclusive(name: str, value: Any) -> None:
    resolved = RequestedParameters({name: value}).resolve(image_count=1, native_resolution=512)
    assert getattr(resolved, name) == value


def test_an_unknown_parameter_is_rejected() -> None:
    with pytest.raises(ValueError, match="not a training parameter: colour"):
        RequestedParameters({"colour": "red"})


@given(total=st.integers(1, 100_000))
def test_the_default_warm_up_is_a_twentieth_and_at_most_100_steps(total: int) -> None:
    parameters = TrainingParameters(epochs=1, resolution=512)
    assert parameters.warmup_steps(total) == min(100, total // 20)


def test_a_given_warm_up_is_kept() -> None:
    parameters = TrainingParameters(epochs=1, resolution=512, lr_warmup_steps=7)
    assert parameters.warmup_steps(1000) == 7


def test_prodigys_learning_rate_is_1_unless_given() -> None:
    def resolved(**named: Any) -> TrainingParameters:
        return RequestedParameters(named).resolve(image_count=10, native_resolution=512)

    assert resolved(optimizer="prodigy").learning_rate == 1.0
    assert resolved(optimizer="prodigy", learning_rate=0.5).learning_rate == 0.5
    assert resolved(optimizer="adamw8bit").learning_rate == 1e-4
    with pytest.raises(InvalidParameter, match=r"at most 0\.1"):
        resolved(learning_rate=1.0)


@pytest.mark.parametrize("rate", [float("nan"), "1e-4", 20.0, 1.0])
@pytest.mark.parametrize("name", ["learning_rate", "text_encoder_lr"])
def test_a_rejected_learning_rate_names_the_limit_of_its_optimizer(name: str, rate: Any) -> None:
    with pytest.raises(InvalidParameter) as caught:
        RequestedParameters({name: rate, "optimizer": "adamw"})
    assert caught.value.remedy == "give a number above 0 and at most 0.1"
    if rate != 1.0:
        with pytest.raises(InvalidParameter, match="at most 10"):
            RequestedParameters({name: rate, "optimizer": "prodigy"})


def test_the_scale_is_alpha_divided_by_the_rank_or_its_square_root() -> None:
    def scale(**values: Any) -> float:
        return TrainingParameters(epochs=1, resolution=512, rank=16, **values).lora_scale

    assert scale() == 1.0
    assert scale(alpha=8.0) == 0.5
    assert scale(alpha=8.0, use_rslora=True) == 2.0


def test_the_text_encoders_learning_rate_is_the_unets_unless_given() -> None:
    def share(**values: Any) -> float:
        return TrainingParameters(epochs=1, resolution=512, **values).text_encoder_share

    assert share() == 1.0
    assert share(learning_rate=1e-3, text_encoder_lr=1e-4) == pytest.approx(0.1)


@pytest.mark.parametrize("rate", [1e-4, 5e-324])
def test_the_second_try_has_lower_rates_above_zero(rate: float) -> None:
    first = TrainingParameters(epochs=1, resolution=512, learning_rate=rate, text_encoder_lr=rate)
    second = first.with_lower_learning_rate()
    assert 0 < second.learning_rate <= rate
    assert second.text_encoder_lr == second.learning_rate
    plain = TrainingParameters(epochs=1, resolution=512).with_lower_learning_rate()
    assert plain.text_encoder_lr is None


def test_a_schedule_without_warm_up_has_none() -> None:
    constant = TrainingParameters(
        epochs=1,
        resolution=512,
        lr_scheduler=LearningRateSchedule.CONSTANT,
        lr_warmup_steps=7,
    )
    assert constant.warmup_steps(1000) == 0


def test_every_schedule_has_its_diffusers_name() -> None:
    for schedule in LearningRateSchedule:
        asked = RequestedParameters({"lr_scheduler": str(schedule)})
        assert asked.resolve(image_count=1, native_resolution=512).lr_scheduler == schedule


def test_every_parameter_has_a_limit() -> None:
    assert LIMITS.keys() == PARAMETER_NAMES


def test_a_rejection_names_the_part_that_is_wrong_and_the_remedy() -> None:
    with pytest.raises(InvalidParameter, match="sample_prompts=' ': give text of 1 to 500") as e:
        RequestedParameters({"sample_prompts": ("a cat", " ")})
    assert (e.value.name, e.value.value) == ("sample_prompts", " ")


def test_dim_from_weights_needs_the_weights() -> None:
    with pytest.raises(InvalidParameter, match="give network_weights too") as caught:
        RequestedParameters({"dim_from_weights": True})
    assert caught.value.name == "dim_from_weights"
    RequestedParameters({"dim_from_weights": True, "network_weights": "s3://models/a.safetensors"})
    RequestedParameters({"dim_from_weights": False})
