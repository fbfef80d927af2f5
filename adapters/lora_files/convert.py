"""Convert a finished LoRA to another program's format, for `train --export`."""

from __future__ import annotations

from pathlib import Path

from adapters.lora_files.files import read_lora, write_lora
from adapters.lora_files.lora_formats import InvalidLoraFile, LoraFormat, uses_dora
from domain.errors import UserError

_GENERIC_NAMES = {"pytorch_lora_weights", "adapter_model"}
"""Default file names of libraries; for these the folder's name is used instead."""
DORA_WARNING = (
    "this is DoRA: not every program loads it correctly in kohya's format; docs/format.md lists "
    "which programs do"
)


def convert(source: Path, form: str, out: Path) -> tuple[list[Path], list[str]]:
    """Convert the LoRA at ``source`` into ``out``; return the written files and warnings.

    Raises:
        InvalidLoraFile: ``source`` is not a LoRA, or the format cannot represent it.
        UserError: the output would overwrite ``source`` or cannot be written.
    """
    weights, metadata = read_lora(source)
    whole = source.resolve()
    generic = source.is_dir() or source.stem in _GENERIC_NAMES
    name = (whole if source.is_dir() else whole.parent).name if generic else source.stem
    try:
        files = write_lora(weights, metadata, LoraFormat(form), out, name, source)
    except InvalidLoraFile:
        raise
    except UserError as error:
        raise UserError(f"--out {error}") from None
    warned = LoraFormat(form) is LoraFormat.KOHYA and uses_dora(weights)
    return files, [DORA_WARNING] if warned else []
