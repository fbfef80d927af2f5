"""Render the report's files: the page and its images."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from dataclasses import fields
from importlib.resources import files
from io import BytesIO
from typing import Any, TypeVar

from PIL import Image

from adapters.report.companions import companion_files
from adapters.report.drawings import (
    curves_in_words,
    draw_previews,
    has_gradients,
    plot_curves,
    plot_scores,
    scores_in_words,
)
from application.ports import ReportFile
from domain.buckets import bucket_of, cut_off
from domain.image import TrainingImage
from domain.loss_curve import best_epoch, overfitting_note, stall_note
from domain.parameters import TrainingParameters
from domain.report import StyleReport

_Item = TypeVar("_Item")

THUMBNAIL_PIXELS = 160
"""Longest side of a training image in the report."""

LONG_TEXT = 120
"""Characters shown of a caption or prompt; the rest is collapsed."""

MAX_CHECKPOINTS = 6
"""Maximum checkpoints with previews in the report; all are stored as files beside it."""


class HtmlReporter:
    """Port ``Reporter``. Deterministic; the page loads nothing from the network.

    Args:
        decode: decodes a file's bytes to an upright RGB image.
        companions: also render ``companion_files``, whose names are keys in the weights'
            bucket.
    """

    def __init__(
        self, decode: Callable[[bytes], Image.Image], *, companions: bool = False
    ) -> None:
        self._decode = decode
        self._companions = companions

    def render(self, report: StyleReport) -> Sequence[ReportFile]:
        """Render ``report.html``, ``loss.png`` and, with previews, ``previews.png``."""
        curve = plot_curves(report.history, report.metric.base_loss)
        rendered = [ReportFile("loss.png", "image/png", curve)]
        if self._companions:
            rendered += companion_files(report)
        if report.before:
            grid = draw_previews(report.before, report.after)
            rendered.append(ReportFile("previews.png", "image/png", grid))
        # A file name may be invalid Unicode.
        page = self._page(report, curve).encode(errors="replace")
        return [*rendered, ReportFile("report.html", "text/html; charset=utf-8", page)]

    def _page(self, report: StyleReport, curve: bytes) -> str:
        from jinja2 import Environment, StrictUndefined

        environment = Environment(
            autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
        )
        template = environment.from_string(
            files("adapters.report").joinpath("report.html").read_text("utf-8")
        )
        weights = report.artifact.location.name
        best = best_epoch(report.history)
        prompt = _example_prompt(report)
        scores = plot_scores(report.scores) if report.scores else None
        return template.render(
            report=report,
            long_text=LONG_TEXT,
            title=report.task.label.name or f"Style {report.task.style_id}",
            duration=_duration(report.seconds),
            curve=_data_uri(curve, "image/png"),
            curve_size=Image.open(BytesIO(curve)).size,
            curve_in_words=curves_in_words(report.history, report.metric.base_loss),
            gradients=has_gradients(report.history),
            pairs=[
                (before, _data_uri(before.png, "image/png"), _data_uri(after.png, "image/png"))
                for before, after in zip(report.before, report.after, strict=True)
            ],
            best=best,
            delivered=report.metric.delivered_epoch or report.metric.epochs,
            stall=stall_note(report.history),
            overfitting=overfitting_note(report.history),
            strips=self._strips(report),
            scores=scores and _data_uri(scores, "image/png"),
            scores_size=Image.open(BytesIO(scores)).size if scores else None,
            scores_in_words=scores_in_words(report.scores),
            parameters=_parameter_rows(report.parameters, report.metric.steps),
            thumbnails=[
                (
                    image,
                    _crop(image, report.parameters),
                    *self._thumbnail(image.data),
                )
                for image in report.images.usable
            ],
            weights=weights,
            size=f"{report.artifact.size / 1e6:,.2f} MB",
            prompt=prompt,
            # JSON string literals are valid in Python.
            quoted_prompt=json.dumps(prompt, ensure_ascii=False),
            lora_tag=f"<lora:{weights.removesuffix('.safetensors')}:1>",
        )

    def _strips(self, report: StyleReport) -> list[tuple[str, list[tuple[str, str]]]]:
        """For each prompt the images drawn during training, with their captions."""
        wanted = len(report.after)
        whole = [
            (epoch, pngs) for epoch, pngs in report.checkpoint_previews if len(pngs) == wanted
        ]
        drawn = _spread(whole, MAX_CHECKPOINTS)
        return [
            (
                preview.prompt,
                [(f"epoch {epoch}", self._thumbnail(pngs[n])[0]) for epoch, pngs in drawn],
            )
            for n, preview in enumerate(report.after)
            if drawn
        ]

    def _thumbnail(self, data: bytes) -> tuple[str, int, int]:
        image = self._decode(data)
        image.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS), Image.Resampling.LANCZOS)
        file = BytesIO()
        image.save(file, "JPEG", quality=82)
        return _data_uri(file.getvalue(), "image/jpeg"), image.width, image.height


def _parameter_rows(parameters: TrainingParameters, steps: int) -> list[tuple[str, str]]:
    """All parameters by name, with the effective values of omitted ones."""
    resolved = {
        "alpha": f"{parameters.network_alpha:g}",
        "lr_warmup_steps": str(parameters.warmup_steps(steps)),
        "snr_gamma": "off",
        "text_encoder_lr": (
            f"{parameters.learning_rate:g}" if parameters.train_text_encoder else "none"
        ),
        "trigger_word": "none",
        "network_weights": "none",
        "caption_prefix": "none",
        "caption_suffix": "none",
        "sample_prompts": "the first distinct captions, with added subjects if all are equal",
    }
    rows = []
    for field in fields(parameters):
        value: Any = getattr(parameters, field.name)
        if value is None or value == ():
            text = resolved[field.name]
        elif isinstance(value, bool):
            text = "yes" if value else "no"
        elif isinstance(value, tuple):
            text = "; ".join(value)
        else:
            text = f"{value:g}" if isinstance(value, float) else str(value)
        rows.append((field.name, text))
    return rows


def _crop(image: TrainingImage, parameters: TrainingParameters) -> tuple[int, int, int]:
    """Training width and height of an image, and the percentage cropped."""
    pixels = image.facts.width, image.facts.height
    size = bucket_of(*pixels, parameters.resolution)
    return *size, round(100 * cut_off(*pixels, parameters.resolution))


def _spread(items: Sequence[_Item], most: int) -> list[_Item]:
    """At most ``most`` of the items, evenly spaced, including the last."""
    count = min(len(items), most)
    return [items[(n + 1) * len(items) // count - 1] for n in range(count)]


def _example_prompt(report: StyleReport) -> str:
    if report.after:
        return report.after[0].prompt
    return " ".join(filter(None, (report.parameters.trigger_word, "a house by the sea")))


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _data_uri(data: bytes, content_type: str) -> str:
    return f"data:{content_type};base64,{base64.b64encode(data).decode()}"
