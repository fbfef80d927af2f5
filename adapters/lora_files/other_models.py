"""Identify files that are not a LoRA of Stable Diffusion 1.5."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

SDXL, SD2, SD3, FLUX = "SDXL", "Stable Diffusion 2", "Stable Diffusion 3", "Flux"

_NOT_A_LORA = {
    re.compile(r"model\.diffusion_model\.|first_stage_model\.|cond_stage_model\."): (
        "a whole checkpoint"
    ),
    re.compile(r"(emb_params|string_to_param.*)"): "a textual inversion embedding",
    re.compile(r".*\bmotion_modules\b"): "an AnimateDiff motion module",
}
_KEYS = {
    re.compile(r".*(?:double_blocks|single_blocks|single_transformer_blocks)[._]"): FLUX,
    re.compile(r".*joint_blocks[._]|transformer\.transformer_blocks\."): SD3,
    re.compile(r"lora_transformer_|transformer\.|diffusion_model\.|lycoris_transformer_"): (
        "a diffusion transformer (Flux, Stable Diffusion 3 or the like)"
    ),
    re.compile(r"lora_te[12]_|text_encoder_2\.|.*(?:add_embedding|label_emb)[._]"): SDXL,
    re.compile(r".*transformer_blocks[._](?:[1-9]\d*)[._](?:attn|ff)"): SDXL,
}
CONTEXT_WIDTHS = {2048: SDXL, 1024: SD2}
"""By the width of the text encoder's output, which ``attn2``'s keys and values read."""
_TEXT_WIDTHS = {1280: SDXL, 1024: SD2}
_READS_CONTEXT = re.compile(r".*attn2[._](?:processor\.)?to_[kv](?:_lora)?\..*(?:down|lora_A)")
_READS_TEXT = re.compile(r"(?:lora_te_|text_encoder).*(?:q_proj|to_q|fc1).*(?:down|lora_A)")
_ORIGINAL_BLOCKS = re.compile(r".*(?:input_blocks|middle_block|output_blocks)[._]\d")
_ARCHITECTURES = {
    "stable-diffusion-xl": SDXL,
    "stable-diffusion-v2": SD2,
    "stable-diffusion-v3": SD3,
    "stable-diffusion-3": SD3,
    "flux": FLUX,
    "sdxl": SDXL,
    "sd_v2": SD2,
    "sd3": SD3,
}
"""The beginnings of ``modelspec.architecture`` and ``ss_base_model_version``."""


def other_model(shapes: Mapping[str, tuple[int, ...]], metadata: Mapping[str, str]) -> str | None:
    """What the file is, to continue "it is ..."; None if it may be a LoRA of Stable Diffusion 1.5.

    Args:
        shapes: shape of every tensor, by its key.
    """
    if kind := _by_key(_NOT_A_LORA, shapes):
        return f"{kind}, not a LoRA"
    model = _by_key(_KEYS, shapes) or _by_width(shapes) or _by_metadata(metadata)
    if model is not None:
        return f"a LoRA of {model}, not of Stable Diffusion 1.5"
    if original := next(filter(_ORIGINAL_BLOCKS.match, shapes), None):
        return (
            f"a LoRA with the block names of original checkpoints ({original.partition('.')[0]}), "
            "as for SDXL; a LoRA of Stable Diffusion 1.5 has down_blocks and up_blocks"
        )
    return None


def _by_key(table: Mapping[re.Pattern[str], str], keys: Iterable[str]) -> str | None:
    names = list(keys)
    return next((kind for key, kind in table.items() if any(map(key.match, names))), None)


def _by_width(shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    for key, shape in shapes.items():
        if len(shape) < 2:
            continue
        widths = CONTEXT_WIDTHS if _READS_CONTEXT.match(key) else {}
        if _READS_TEXT.match(key):
            widths = _TEXT_WIDTHS
        if shape[1] in widths:
            return widths[shape[1]]
    return None


def _by_metadata(metadata: Mapping[str, str]) -> str | None:
    if metadata.get("ss_v2") == "True":
        return SD2
    for field in ("modelspec.architecture", "ss_base_model_version"):
        value = metadata.get(field, "").lower()
        for beginning, model in _ARCHITECTURES.items():
            if value.startswith(beginning):
                return model
    return None
