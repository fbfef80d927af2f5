"""The finished style as one ``.safetensors`` file for common programs.

Keys are kohya's, the only format that diffusers, AUTOMATIC1111 and ComfyUI all load
(docs/format.md). Only DoRA is in diffusers' format, which only diffusers reads: diffusers drops
the magnitudes of kohya's format, and AUTOMATIC1111 normalises along another axis. Matrices are
float16, like the models in those programs: half the size, the same images. Metadata is
kohya's ``ss_*`` and Stability's ``modelspec.*`` (ModelSpec 1.0.1).
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from adapters.lora_files.diffusers_format import to_diffusers
from adapters.lora_files.files import hashed
from adapters.lora_files.kohya_format import to_kohya
from adapters.lora_files.lora_formats import LoraWeights
from domain.parameters import TrainingParameters
from domain.training_plan import TrainingPlan


@dataclass(frozen=True)
class RunFacts:
    """Facts about the run that the metadata holds in addition to the plan."""

    base_name: str
    prediction_type: str
    captions: Sequence[str]
    optimizer: str
    """The optimizer's class path."""
    bucket_sizes: Mapping[tuple[int, int], int]
    """Number of images by width and height in pixels."""
    steps: int
    steps_per_epoch: int
    """Steps done, and steps in a whole epoch."""

    @property
    def image_count(self) -> int:
        """Number of training images."""
        return sum(self.bucket_sizes.values())


def encode_trained(weights: LoraWeights, plan: TrainingPlan, facts: RunFacts) -> bytes:
    """The trained LoRA as a file. Reads no clock: equal plans and weights give equal bytes."""
    alpha = next(iter(weights.values())).alpha
    if plan.parameters.use_dora:
        tensors, form = to_diffusers(weights)
    else:
        tensors, form = to_kohya(weights), {}
    metadata = {**_kohya(plan, alpha, facts), **_modelspec(plan, facts), **form}
    return hashed(tensors, metadata)


def _kohya(plan: TrainingPlan, alpha: float, facts: RunFacts) -> dict[str, str]:
    parameters = plan.parameters
    title = _title(plan)
    decay = parameters.weight_decay
    velocity = facts.prediction_type == "v_prediction"
    buckets = {
        str(index): {"resolution": list(size), "count": count}
        for index, (size, count) in enumerate(facts.bucket_sizes.items())
    }
    values = {
        "ss_output_name": title,
        "ss_network_module": "networks.lora",
        "ss_network_dim": parameters.rank,
        "ss_network_alpha": alpha,
        "ss_network_args": json.dumps(_network_arguments(parameters)),
        "ss_base_model_version": "sd_v1_v" if velocity else "sd_v1",
        "ss_sd_model_name": facts.base_name,
        "ss_v2": False,
        "ss_unet_lr": parameters.learning_rate,
        "ss_text_encoder_lr": _text_rate(parameters),
        "ss_learning_rate": parameters.learning_rate,
        "ss_lr_scheduler": str(parameters.lr_scheduler),
        "ss_lr_warmup_steps": parameters.warmup_steps(parameters.epochs * facts.steps_per_epoch),
        "ss_optimizer": f"{facts.optimizer}(weight_decay={decay:g})",
        "ss_max_grad_norm": parameters.max_grad_norm,
        "ss_num_epochs": parameters.epochs,
        "ss_epoch": facts.steps // facts.steps_per_epoch,
        "ss_steps": facts.steps,
        "ss_max_train_steps": parameters.epochs * facts.steps_per_epoch,
        "ss_num_train_images": facts.image_count,
        "ss_num_validation_images": len(plan.images) - facts.image_count,
        "ss_num_reg_images": 0,
        "ss_num_batches_per_epoch": facts.steps_per_epoch,
        "ss_batch_size_per_device": parameters.batch_size,
        "ss_total_batch_size": parameters.batch_size,
        "ss_resolution": f"({parameters.resolution}, {parameters.resolution})",
        "ss_enable_bucket": True,
        "ss_bucket_info": json.dumps({"buckets": buckets}),
        "ss_dataset_dirs": json.dumps({title: {"n_repeats": 1, "img_count": facts.image_count}}),
        "ss_tag_frequency": json.dumps({title: _tag_frequency(facts.captions)}),
        "ss_min_snr_gamma": parameters.snr_gamma,
        "ss_noise_offset": parameters.noise_offset or None,
        "ss_caption_dropout_rate": parameters.caption_dropout,
        "ss_seed": parameters.seed,
    }
    values |= {**_caption_options(plan), **_provenance(plan)}
    return {name: str(value) for name, value in values.items()}


def _provenance(plan: TrainingPlan) -> dict[str, object]:
    """The LoRA that the run started from: its file's name, and the hash of its content."""
    given, initial = plan.parameters.network_weights, plan.initial
    if given is None or initial is None:
        return {}
    return {
        "ss_network_weights": PurePosixPath(given.replace("\\", "/")).name,
        "ss_network_weights_hash": hashlib.sha256(initial.data).hexdigest(),
        "ss_dim_from_weights": plan.parameters.dim_from_weights,
    }


def _caption_options(plan: TrainingPlan) -> dict[str, object]:
    """kohya's keys about captions, for the options that were used."""
    parameters = plan.parameters
    used: dict[str, object] = {}
    if parameters.varies_captions:
        used["ss_shuffle_caption"] = parameters.shuffle_caption
        used["ss_keep_tokens"] = parameters.keep_tokens
        used["ss_caption_tag_dropout_rate"] = parameters.caption_tag_dropout_rate
    if parameters.max_token_length != TrainingParameters.max_token_length:
        used["ss_max_token_length"] = parameters.max_token_length
    return used


def _title(plan: TrainingPlan) -> str:
    return plan.label.name or f"style_{plan.style_id}"


def _text_rate(parameters: TrainingParameters) -> float | None:
    if not parameters.train_text_encoder:
        return None
    return parameters.text_encoder_lr or parameters.learning_rate


def _network_arguments(parameters: TrainingParameters) -> dict[str, str]:
    """Options that differ from kohya's defaults, by our parameters' names.

    kohya's ``ss_network_dropout`` is not ``lora_dropout``: it drops outputs of ``lora_down``, and
    PEFT drops its inputs.
    """
    values = {
        "lora_targets": str(parameters.lora_targets),
        "lora_dropout": parameters.lora_dropout or None,
        "use_rslora": parameters.use_rslora or None,
        "use_dora": parameters.use_dora or None,
    }
    return {name: str(value) for name, value in values.items() if value is not None}


def _modelspec(plan: TrainingPlan, facts: RunFacts) -> dict[str, str]:
    """ModelSpec's keys, without those that the plan has no value for."""
    resolution, count = plan.parameters.resolution, facts.image_count
    values = {
        "sai_model_spec": "1.0.1",
        "architecture": "stable-diffusion-v1/lora",
        "implementation": "diffusers",
        "title": _title(plan),
        "description": f"A style learnt from {count} images with {facts.base_name}.",
        "resolution": f"{resolution}x{resolution}",
        "prediction_type": "v" if facts.prediction_type == "v_prediction" else "epsilon",
    }
    credits = {
        "author": plan.label.author,
        "license": plan.label.license,
        "thumbnail": plan.label.thumbnail,
    }
    values |= {name: value for name, value in credits.items() if value is not None}
    if plan.tags:
        values["tags"] = ", ".join(plan.tags)
    if plan.parameters.trigger_word is not None:
        values["trigger_phrase"] = plan.parameters.trigger_word
        values["usage_hint"] = f"Trigger word: {plan.parameters.trigger_word}"
    # An interrupted run ends later than an uninterrupted one, and their files must be equal. So
    # the date is the task's creation time; a task without one gives no date.
    if plan.created_at is not None:
        values["date"] = plan.created_at.isoformat()
    return {f"modelspec.{name}": value for name, value in values.items()}


def _tag_frequency(captions: Sequence[str]) -> dict[str, int]:
    """Number of captions that contain each comma-separated phrase."""
    phrases = (phrase.strip() for caption in captions for phrase in caption.split(","))
    return dict(Counter(phrase for phrase in phrases if phrase))
