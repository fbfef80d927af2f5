"""Names of base models: a folder, a file or a name at the hub. Does not import torch."""

from __future__ import annotations

import re
import threading
from pathlib import Path

from domain.errors import UserError

PICKLES = {".ckpt", ".pt", ".pth", ".bin", ".pkl", ".pickle"}
HUB_SECONDS = 10.0
UNNEEDED_HUB_SECONDS = 1.5
"""Limits for a response of the hub, if it is needed and if it is not."""


class BaseModelInvalid(UserError, ValueError):
    """The base model cannot be used; the message gives the reason and the remedy."""

    def __init__(self, name: str, remedy: str) -> None:
        super().__init__(f"base model {name!r}: {' '.join(remedy.split())}")


def check_name(name: str) -> None:
    """Check that a name is an existing path, a model in the hub's cache, or can be looked up.

    Raises:
        BaseModelInvalid: none of these.
    """
    path = Path(name)
    try:
        if path.exists():
            return
    except OSError as error:
        reason = error.strerror or str(error)
        raise BaseModelInvalid(name, f"cannot be read ({reason}); check the path") from None
    is_file = path.suffix.lower() in {".safetensors", *PICKLES}
    if is_file or re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name) is None:
        raise BaseModelInvalid(name, "is not a folder, a file or a hub name; check the path")
    if not is_cached(name) and hub_has(name) is None:
        raise BaseModelInvalid(
            name,
            "is not a folder or a file, and the hub cannot be reached; check the name and the "
            "connection, or give a folder or a .safetensors file",
        )


def hub_has(name: str, *, needed: bool = True) -> bool | None:
    """Whether the hub has the model; None if it does not respond in time. Waits only briefly if it
    is not needed, because there is a cached copy or another model."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    seconds = HUB_SECONDS if needed else UNNEEDED_HUB_SECONDS
    found: list[bool] = []

    def look_up() -> None:
        try:
            HfApi().model_info(name, timeout=seconds)
            found.append(True)
        except HfHubHTTPError:
            found.append(False)
        except Exception:  # the HTTP client raises many types
            return

    # In a thread: the client's timeout does not limit the look-up of the hub's address.
    thread = threading.Thread(target=look_up, daemon=True)
    thread.start()
    thread.join(seconds)
    return found[0] if found else None


def is_cached(name: str, file: str = "model_index.json") -> bool:
    """Whether the hub's cache on this machine has this file of the model."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        return isinstance(try_to_load_from_cache(name, file), str)
    except HFValidationError:  # the name cannot be one of the hub's
        return False
