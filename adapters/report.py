"""A finished run as a page that opens anywhere: previews, loss curve, parameters, pictures."""

from __future__ import annotations

import base64
import json
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import fields
from importlib.resources import files
from io import BytesIO
from typing import Any, TypeVar

from PIL import Image, ImageDraw, ImageFont, ImageOps

from application.learning_curve import best_epoch, overfitting_note
from application.ports import EpochRecord, Preview, ReportFile, StyleReport
from domain.parameters import TrainingParameters

_Item = TypeVar("_Item")

THUMBNAIL_PIXELS = 160
"""Longest side of a training picture in the report."""

MOST_UNDERWAY = 6
"""Checkpoints whose previews are shown; all are beside the report as files."""

_GAP = 24
_LINE = 26
_TEXT_PIXELS = 18
_PAPER, _INK, _FAINT, _ACCENT = "#ffffff", "#26241f", "#76716a", "#2f6690"


class HtmlReporter:
    """Port ``Reporter``. Equal reports give equal files; nothing is fetched from anywhere.

    Args:
        decode: the picture in a file's bytes, RGB and upright.
    """

    def __init__(self, decode: Callable[[bytes], Image.Image]) -> None:
        self._decode = decode

    def render(self, report: StyleReport) -> Sequence[ReportFile]:
        """``report.html``, self-contained; ``loss.png``; ``previews.png`` where there are any."""
        curve = plot_loss(report.history)
        rendered = [ReportFile("loss.png", "image/png", curve)]
        if report.before:
            grid = draw_previews(report.before, report.after)
            rendered.append(ReportFile("previews.png", "image/png", grid))
        # The name of a file need not be Unicode.
        page = self._page(report, curve).encode(errors="replace")
        return [*rendered, ReportFile("report.html", "text/html; charset=utf-8", page)]

    def _page(self, report: StyleReport, curve: bytes) -> str:
        from jinja2 import Environment, StrictUndefined

        environment = Environment(
            autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
        )
        template = environment.from_string(
            files("adapters").joinpath("report.html").read_text("utf-8")
        )
        weights = report.artifact.location.name
        best = best_epoch(report.history)
        prompt = _example_prompt(report)
        return template.render(
            report=report,
            title=f"Style {report.task.style_id}",
            duration=_duration(report.seconds),
            curve=_data_uri(curve, "image/png"),
            pairs=[
                (before, _data_uri(before.png, "image/png"), _data_uri(after.png, "image/png"))
                for before, after in zip(report.before, report.after, strict=True)
            ],
            best=best,
            overfitting=overfitting_note(report.history),
            strips=self._strips(report),
            parameters=_parameter_rows(report.parameters, report.metric.steps),
            thumbnails=[
                (picture, *self._thumbnail(picture.data)) for picture in report.pictures.usable
            ],
            weights=weights,
            size=f"{report.artifact.size / 1e6:,.2f} MB",
            prompt=prompt,
            # JSON's string literals are Python's, too.
            quoted_prompt=json.dumps(prompt, ensure_ascii=False),
            lora_tag=f"<lora:{weights.removesuffix('.safetensors')}:1>",
        )

    def _strips(self, report: StyleReport) -> list[tuple[str, list[tuple[str, str]]]]:
        """For each prompt the pictures drawn underway, each with what it shows."""
        wanted = len(report.after)
        whole = [(epoch, pngs) for epoch, pngs in report.underway if len(pngs) == wanted]
        drawn = _spread(whole, MOST_UNDERWAY)
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


def plot_loss(history: Sequence[EpochRecord]) -> bytes:
    """Loss per epoch, with its moving average in a long run, and the learning rate: a PNG of
    1600 x 800 pixels.
    """
    # Not pyplot: it keeps figures in global state, and looks for a display.
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    epochs = [record.epoch for record in history]
    losses = [record.loss for record in history]
    figure = Figure(figsize=(6.4, 3.2), dpi=250, facecolor=_PAPER, layout="constrained")
    axes = figure.add_subplot()
    rate = axes.twinx()
    # The twin would cover the loss; this puts it behind, and lets it show through.
    axes.set_zorder(rate.get_zorder() + 1)
    axes.patch.set_visible(False)

    rate.plot(
        epochs, [record.learning_rate for record in history], color="#c8874b", lw=1.2, ls=":"
    )
    rate.set_ylabel("learning rate (dotted)", color="#99602a")
    rate.set_ylim(bottom=-0.02 * max(record.learning_rate for record in history))
    rate.ticklabel_format(axis="y", style="sci", scilimits=(0, 0), useMathText=True)

    width = max(1, len(losses) // 10)
    marker = "o" if len(losses) < 3 else None
    label = "loss per epoch"
    if width > 1:
        axes.plot(epochs, losses, color=_ACCENT, alpha=0.35, lw=1, label=label)
        label = f"mean of the last {width} epochs"
        losses = [sum(losses[end - width : end]) / width for end in range(width, len(losses) + 1)]
    axes.plot(epochs[width - 1 :], losses, color=_ACCENT, lw=2, marker=marker, label=label)
    for name, colour, points in _measured(history):
        axes.plot(*points, color=colour, lw=1.2, marker=".", ls="--", label=name)
    axes.set_xlabel("epoch", color=_INK)
    axes.set_ylabel("loss", color=_ACCENT)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="y", color=_FAINT, alpha=0.18)
    axes.legend(frameon=False, labelcolor=_INK)
    for side in (axes, rate):
        side.spines[:].set_visible(False)
        side.tick_params(length=0, labelcolor=_FAINT)
    file = BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


def _measured(
    history: Sequence[EpochRecord],
) -> list[tuple[str, str, tuple[list[int], list[float]]]]:
    """The losses over fixed noises: name, colour and points of each curve that has any."""
    curves = []
    for name, colour, values in (
        ("fixed noises, pictures trained on", "#5d8a4e", [r.evaluation_loss for r in history]),
        ("fixed noises, pictures held out", "#a8443f", [r.validation_loss for r in history]),
    ):
        points = [(r.epoch, v) for r, v in zip(history, values, strict=True) if v is not None]
        if points:
            curves.append((name, colour, ([e for e, _ in points], [v for _, v in points])))
    return curves


def draw_previews(before: Sequence[Preview], after: Sequence[Preview]) -> bytes:
    """A PNG with a row for each prompt: the picture before the training, and the one after."""
    pairs = [
        (_opened(first), _opened(second)) for first, second in zip(before, after, strict=True)
    ]
    side = max(max(image.size) for pair in pairs for image in pair)
    side = min(512, max(256, side))
    font = _font()
    titles = [
        [*_wrap(preview.prompt, font, 2 * side + _GAP), f"seed {preview.seed}"]
        for preview in before
    ]
    heights = [len(lines) * _LINE + _GAP // 2 + side for lines in titles]
    width = 2 * side + 3 * _GAP
    height = _LINE + 2 * _GAP + sum(heights) + 2 * _GAP * len(heights) - _GAP
    grid = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(grid)

    lefts = (_GAP, 2 * _GAP + side)
    for left, label in zip(lefts, ("before", "after"), strict=True):
        draw.text((left + side / 2, _GAP), label, _ACCENT, font, anchor="mt")
    top = _LINE + 2 * _GAP
    for pair, lines in zip(pairs, titles, strict=True):
        for line in lines:
            colour = _FAINT if line is lines[-1] else _INK
            draw.text((_GAP, top), line, colour, font)
            top += _LINE
        top += _GAP // 2
        for left, image in zip(lefts, pair, strict=True):
            fitted = ImageOps.contain(image, (side, side), Image.Resampling.LANCZOS)
            grid.paste(fitted, (left + (side - fitted.width) // 2, top))
        top += side + 2 * _GAP
    file = BytesIO()
    grid.save(file, "PNG")
    return file.getvalue()


def _wrap(text: str, font: ImageFont.FreeTypeFont, pixels: float) -> list[str]:
    # Line breaks and other unprintables make the text layout fail.
    text = "".join(letter if letter.isprintable() else " " for letter in text)
    per_character = max(1.0, font.getlength(text) / max(1, len(text)))
    # Some lines have wider letters than the whole text.
    columns = int(0.95 * pixels / per_character)
    return textwrap.wrap(text, columns, max_lines=3, placeholder=" …")


def _opened(preview: Preview) -> Image.Image:
    return Image.open(BytesIO(preview.png)).convert("RGB")


def _font() -> ImageFont.FreeTypeFont:
    # Pillow's own font knows Latin letters only; this one comes with matplotlib.
    from matplotlib import get_data_path

    return ImageFont.truetype(f"{get_data_path()}/fonts/ttf/DejaVuSans.ttf", _TEXT_PIXELS)


def _parameter_rows(parameters: TrainingParameters, steps: int) -> list[tuple[str, str]]:
    """Every parameter by its name, with the value that an omitted one came to."""
    resolved = {
        "alpha": f"{parameters.network_alpha:g}",
        "lr_warmup_steps": str(parameters.warmup_steps(steps)),
        "snr_gamma": "off",
        "text_encoder_lr": f"{parameters.learning_rate:g}",
        "trigger_word": "none",
        "sample_prompts": "taken from the captions",
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


def _spread(items: Sequence[_Item], most: int) -> list[_Item]:
    """At most ``most`` of the items, evenly over all, the last among them."""
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
