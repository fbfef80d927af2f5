"""Load the configured caption model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adapters.images.decode import decode
from adapters.logs.libraries import quiet_libraries

if TYPE_CHECKING:
    from adapters.captioner import TransformersCaptioner
    from entrypoints.settings import Settings


def load_captioner(settings: Settings, device: str) -> TransformersCaptioner | None:
    """Load the model that captions images without a caption; None if none is configured.

    Raises:
        CaptionModelInvalid: CAPTION_MODEL cannot be loaded.
    """
    if settings.caption_model is None:
        return None
    quiet_libraries()
    from adapters.captioner import TransformersCaptioner

    return TransformersCaptioner(settings.caption_model, device, decode)
