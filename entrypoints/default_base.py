"""Which base model to use when nobody names one."""

from __future__ import annotations

from pathlib import Path

STABLE_DIFFUSION = "stable-diffusion-v1-5/stable-diffusion-v1-5"
SMALL_BASE = Path(__file__).resolve().parent.parent / "assets" / "small_base"


def default_base(device: str) -> tuple[str, str]:
    """The base model's name, and why it was chosen.

    Stable Diffusion 1.5 needs a GPU to be of use, and a hub or its cache to come from.
    """
    if not device.startswith("cuda"):
        return str(SMALL_BASE), "there is no GPU"
    if not _hub_has(STABLE_DIFFUSION):
        return str(SMALL_BASE), "no model hub can be reached"
    return STABLE_DIFFUSION, "there is a GPU and a hub"


def _hub_has(name: str) -> bool:
    from huggingface_hub import HfApi, try_to_load_from_cache

    if isinstance(try_to_load_from_cache(name, "model_index.json"), str):
        return True
    try:
        HfApi().model_info(name, timeout=5.0)
    except Exception:
        return False
    return True
