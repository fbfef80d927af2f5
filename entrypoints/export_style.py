"""A finished style in another program's form: what `train --export` does."""

from __future__ import annotations

from pathlib import Path

from adapters.diffusion.style_file.convert import Form, read_style, write_form
from entrypoints.exit_codes import UsageError

_NAMELESS = {"pytorch_lora_weights", "adapter_model"}
"""Names that libraries give every style; then the folder's tells which it is."""


def convert(source: Path, form: str, out: Path) -> list[Path]:
    """Write the style at ``source`` into ``out`` and return the files.

    Raises:
        StyleFileInvalid: there is no style at ``source``.
        UsageError: it would be written over itself.
    """
    style, metadata = read_style(source)
    whole = source.resolve()
    nameless = source.is_dir() or source.stem in _NAMELESS
    name = (whole if source.is_dir() else whole.parent).name if nameless else source.stem
    if Form(form) is Form.KOHYA and (out / f"{name}.safetensors").resolve() == whole:
        raise UsageError(f"--out {out}: holds the style itself; give another folder")
    return write_form(style, metadata, Form(form), out, name)
