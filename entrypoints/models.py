"""Load the configured base model, or the default one, and the configured caption model."""

from __future__ import annotations

import gc
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from adapters.diffusion.base.names import hub_has, is_cached
from adapters.images.decode import decode
from adapters.logs.libraries import quiet_libraries
from entrypoints.settings import Settings, WorkerSettings

if TYPE_CHECKING:
    from adapters.captioner import TransformersCaptioner
    from adapters.diffusion.base.model import BaseModel

log = logging.getLogger(__name__)

STABLE_DIFFUSION = "stable-diffusion-v1-5/stable-diffusion-v1-5"
SMALL_BASE = Path(__file__).resolve().parent.parent / "assets" / "small_base"
STANDARD_RESOLUTION = 512
"""Side in pixels of Stable Diffusion 1.5's training resolution."""


def default_base(device: str) -> tuple[str, str]:
    """The default base model's name, and the reason for the choice.

    Stable Diffusion 1.5 is chosen only with a GPU, and with access to the hub or a cached copy.
    """
    if not device.startswith("cuda"):
        return str(SMALL_BASE), "the training runs on the CPU"
    if not is_cached(STABLE_DIFFUSION) and not hub_has(STABLE_DIFFUSION, needed=False):
        return str(SMALL_BASE), "the Hugging Face hub cannot be reached"
    return STABLE_DIFFUSION, "there is a GPU and the model is available"


def load_base_model(settings: Settings, device: str) -> BaseModel:
    """Load the configured base model, or the default one for the device.

    Raises:
        BaseModelInvalid: BASE_MODEL is not a base model.
    """
    for_broker = settings.has_broker and isinstance(settings, WorkerSettings)
    name = settings.base_model
    if name is None and for_broker:
        name = STABLE_DIFFUSION  # styles for the backend must not depend on the machine
    elif name is None:
        name, reason = default_base(device)
        log.warning("BASE_MODEL is not set: using %s, because %s", name, reason)
    import_libraries()
    from adapters.diffusion.base.model import load_base
    from adapters.diffusion.lean_imports import lean

    base = lean(lambda: load_base(name, settings.base_model_config))
    if base.native_resolution < STANDARD_RESOLUTION:
        import torch

        # A small model's operations are too short to split: on a busy machine the threads would
        # mostly wait for one another.
        torch.set_num_threads(1)
    return base


def import_libraries() -> None:
    """Import the trainer's libraries, without their progress bars and irrelevant warnings."""
    from adapters.diffusion.lean_imports import lean

    gc.disable()  # imports create many objects and free few
    try:
        lean(_import_trainer)
    finally:
        gc.enable()


def _import_trainer() -> None:
    quiet_libraries()
    import adapters.diffusion.trainer  # noqa: F401 - imports all that a run needs


def load_captioner(settings: Settings, device: str) -> TransformersCaptioner | None:
    """Load the model that captions images without a caption; None if none is configured.

    Raises:
        CaptionModelInvalid: CAPTION_MODEL cannot be loaded.
    """
    if settings.caption_model is None:
        return None
    quiet_libraries()
    from adapters.captioner import CaptionModelInvalid, TransformersCaptioner

    name = settings.caption_model
    # The library would retry for minutes.
    if not (Path(name).exists() or is_cached(name, "config.json") or hub_has(name)):
        raise CaptionModelInvalid(
            f"caption model {name}: is not a folder, and the hub does not have it or cannot be "
            "reached; check the name and the connection"
        )
    return TransformersCaptioner(name, device, decode)
