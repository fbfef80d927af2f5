"""Files beside a LoRA that AUTOMATIC1111, Forge and ComfyUI's managers display.

``<name>.preview.png`` is the image of its card. ``<name>.json`` has the format of AUTOMATIC1111's
metadata editor (``extensions-builtin/Lora/ui_edit_user_metadata.py``).
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from application.ports import ReportFile
from domain.report import StyleReport


def companion_files(report: StyleReport) -> Sequence[ReportFile]:
    """The preview, if any, and the activation text, under names derived from the weights' key."""
    stem = report.artifact.location.key.removesuffix(".safetensors")
    words = report.parameters.trigger_word or ", ".join(report.task.tags)
    about = {
        "description": f"Trained on {len(report.images.usable)} images with {report.base.name}.",
        "sd version": "SD1" if report.base.is_sd15 else "Unknown",
        "activation text": words,
    }
    text = json.dumps(about, indent=4, ensure_ascii=False)
    files = [ReportFile(f"{stem}.json", "application/json", f"{text}\n".encode(errors="replace"))]
    if report.after:
        files.append(ReportFile(f"{stem}.preview.png", "image/png", report.after[0].png))
    return files
