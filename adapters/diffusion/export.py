"""The finished style as one ``.safetensors`` file that every program reads.

Keys are kohya's, ``lora_unet_<path with _>.lora_down.weight``, ``.lora_up.weight`` and
``.alpha``: diffusers, AUTOMATIC1111 and ComfyUI all load this form, and no other is common to
them. Matrices are float16, as those programs run the model in it: half the size, the same
pictures. Metadata is kohya's ``ss_*`` and Stability's ``modelspec.*`` (ModelSpec 1.0.0).
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from adapters.diffusion.dataset import Size
from adapters.diffusion.lora import Adapters
from adapters.diffusion.tensor_file import body_of, encode
from application.ports import TrainingPlan


@dataclass(frozen=True)
class RunFacts:
    """What the file says about its making besides the plan."""

    base_name: str
    prediction_type: str
    captions: Sequence[str]
    bucket_sizes: Mapping[Size, int]
    """Pictures in each bucket."""
    steps: int
    steps_per_epoch: int
    """Steps done, and steps in a whole epoch."""


def encode_style(adapters: Adapters, plan: TrainingPlan, facts: RunFacts) -> bytes:
    """Write the style. No clock is read: equal plans and weights give equal bytes."""
    tensors: dict[str, torch.Tensor] = {}
    for layer, adapter in adapters.by_layer.items():
        key = f"lora_unet_{layer.replace('.', '_')}"
        tensors[f"{key}.lora_down.weight"] = adapter.down.to(torch.float16)
        tensors[f"{key}.lora_up.weight"] = adapter.up.to(torch.float16)
        tensors[f"{key}.alpha"] = torch.tensor(adapters.alpha)
    content_hash = hashlib.sha256(body_of(encode(tensors, {}))).hexdigest()
    return encode(tensors, {**_kohya(plan, facts), **_modelspec(plan, facts, content_hash)})


def _kohya(plan: TrainingPlan, facts: RunFacts) -> dict[str, str]:
    parameters = plan.parameters
    title = f"style_{plan.style_id}"
    velocity = facts.prediction_type == "v_prediction"
    buckets = {
        str(index): {"resolution": list(size), "count": count}
        for index, (size, count) in enumerate(facts.bucket_sizes.items())
    }
    values = {
        "ss_output_name": title,
        "ss_network_module": "networks.lora",
        "ss_network_dim": parameters.rank,
        "ss_network_alpha": parameters.network_alpha,
        "ss_base_model_version": "sd_v1_v" if velocity else "sd_v1",
        "ss_sd_model_name": facts.base_name,
        "ss_v2": False,
        "ss_unet_lr": parameters.learning_rate,
        "ss_learning_rate": parameters.learning_rate,
        "ss_lr_scheduler": str(parameters.lr_scheduler),
        "ss_lr_warmup_steps": parameters.warmup_steps(parameters.epochs * facts.steps_per_epoch),
        "ss_optimizer": "torch.optim.AdamW",
        "ss_max_grad_norm": parameters.max_grad_norm,
        "ss_num_epochs": parameters.epochs,
        "ss_epoch": facts.steps // facts.steps_per_epoch,
        "ss_steps": facts.steps,
        "ss_max_train_steps": parameters.epochs * facts.steps_per_epoch,
        "ss_num_train_images": len(plan.pictures),
        "ss_num_reg_images": 0,
        "ss_num_batches_per_epoch": facts.steps_per_epoch,
        "ss_batch_size_per_device": parameters.batch_size,
        "ss_total_batch_size": parameters.batch_size,
        "ss_resolution": f"({parameters.resolution}, {parameters.resolution})",
        "ss_enable_bucket": True,
        "ss_bucket_info": json.dumps({"buckets": buckets}),
        "ss_tag_frequency": json.dumps({title: _tag_frequency(facts.captions)}),
        "ss_min_snr_gamma": parameters.snr_gamma,
        "ss_noise_offset": parameters.noise_offset or None,
        "ss_caption_dropout_rate": parameters.caption_dropout,
        "ss_seed": parameters.seed,
    }
    return {name: str(value) for name, value in values.items()}


def _modelspec(plan: TrainingPlan, facts: RunFacts, content_hash: str) -> dict[str, str]:
    resolution = plan.parameters.resolution
    values = {
        "sai_model_spec": "1.0.0",
        "architecture": "stable-diffusion-v1/lora",
        "implementation": "diffusers",
        "title": f"style_{plan.style_id}",
        "resolution": f"{resolution}x{resolution}",
        "prediction_type": "v" if facts.prediction_type == "v_prediction" else "epsilon",
        "hash_sha256": f"0x{content_hash}",
    }
    if plan.tags:
        values["tags"] = ", ".join(plan.tags)
    if plan.parameters.trigger_word is not None:
        values["trigger_phrase"] = plan.parameters.trigger_word
    if plan.created_at is not None:
        values["date"] = plan.created_at.isoformat()
    return {f"modelspec.{name}": value for name, value in values.items()}


def _tag_frequency(captions: Sequence[str]) -> dict[str, int]:
    """How many captions have each of the phrases that commas part."""
    phrases = (phrase.strip() for caption in captions for phrase in caption.split(","))
    return dict(Counter(phrase for phrase in phrases if phrase))
