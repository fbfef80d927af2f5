"""The output of diffusers, transformers and the hub's client."""

from __future__ import annotations

import logging


def quiet_libraries() -> None:
    """Silence the libraries' progress bars and irrelevant warnings."""
    # PEFT imports bitsandbytes if installed; on a CPU that warns about missing kernels.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    import diffusers.utils.logging as diffusers_logging
    import huggingface_hub.utils.logging  # noqa: F401 - gives its logger a handler
    import transformers.utils.logging as transformers_logging

    for library in (diffusers_logging, transformers_logging):
        library.set_verbosity_error()
        library.disable_progress_bar()
    # The root logger already prints its lines, in our format.
    logging.getLogger("huggingface_hub").handlers.clear()
