"""Effect of captions on a style: `python -m benchmarks.captions`.

Trains the drawn style set on the small base with the artist's captions, with captions that the
small captioner makes, and with the trigger word alone. Measures each style's loss on held-out
images of the same style as `benchmarks.quality` does, and the scores of its previews. All prompts
of the measurements start with the trigger word.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.quality import draw_images, prepare, with_text

if TYPE_CHECKING:
    from domain.image import TrainingImage

TRIGGER_WORD = "inkwash"
LEARNING_RATE = 0.01
"""The best one in the table of `benchmarks.quality`."""
RESULTS = Path("benchmarks/results/captions-cpu.json")
BEGIN, END = "<!-- captions -->", "<!-- /captions -->"
"""Marks around the results in a page."""
PREVIEWS = 8
"""Prompts of the previews that are scored: the captions of as many other drawings."""
MEASURES = ("gain", "closeness", "faithfulness")
_EQUAL = "generated captions that equal the artist's"


def main() -> None:
    """Measure, print and write the results."""
    parser = argparse.ArgumentParser(description="Measure what captions gain.")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=3, help="runs of each set (default: 3)")
    parser.add_argument("--page", type=Path, help="page to put the table into, at its marks")
    parser.add_argument("--json", type=Path, default=RESULTS)
    options = parser.parse_args()
    options.device = "cpu"
    with tempfile.TemporaryDirectory() as scratch:
        results = measure(options, Path(scratch))
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(results, indent=1) + "\n")
    if options.page:
        page = options.page.read_text("utf-8")
        options.page.write_text(with_text(page, BEGIN, END, markdown(results)), "utf-8")


def measure(options: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """The gain with each kind of caption, for each seed."""
    import torch

    bench = prepare(options, scratch, trigger_word=TRIGGER_WORD)
    generated = _described(bench.images)
    equal = sum(image.caption == text for image, text in zip(bench.images, generated, strict=True))
    kinds: dict[str, Sequence[str | None]] = {
        "the artist's captions": [image.caption for image in bench.images],
        "generated captions": generated,
        "the trigger word only": [None] * len(generated),
    }
    parameters: dict[str, Any] = {
        "learning_rate": LEARNING_RATE,
        "trigger_word": TRIGGER_WORD,
        "sample_prompts": _prompts(scratch / "prompts"),
    }
    measured: dict[str, dict[str, list[float]]] = {}
    for kind, captions in kinds.items():
        images = tuple(
            replace(image, caption=caption)
            for image, caption in zip(bench.images, captions, strict=True)
        )
        with_captions = replace(bench, images=images)
        measured[kind] = {name: [] for name in MEASURES}
        for seed in bench.seeds:
            with with_captions.run({**parameters, "seed": seed}) as session:
                scores = session.score_previews(session.previews(with_lora=True))
                loss = bench.held_out_loss(session)
            row = (1 - loss / bench.base_loss, scores.closeness, scores.faithfulness)
            for name, value in zip(MEASURES, row, strict=True):
                measured[kind][name].append(round(value, 4))
        print(f"{kind:24} {measured[kind]}", flush=True)
    return {
        "torch": torch.__version__,
        "base": bench.base,
        "epochs": options.epochs,
        "base loss": round(bench.base_loss, 5),
        "images": len(generated),
        _EQUAL: equal,
        "captions": measured,
    }


def _prompts(folder: Path) -> tuple[str, ...]:
    from adapters.diffusion.data.captions import with_trigger_word

    drawings = draw_images(folder, seed=3, count=PREVIEWS)
    return tuple(with_trigger_word(drawing.caption or "", TRIGGER_WORD) for drawing in drawings)


def _described(images: Sequence[TrainingImage]) -> list[str]:
    from adapters.captioner import TransformersCaptioner
    from adapters.images.decode import decode
    from application.stop_signal import StopSignal
    from entrypoints.models import SMALL_BASE

    captioner = TransformersCaptioner(str(SMALL_BASE.parent / "small_captioner"), "cpu", decode)
    return captioner.describe([image.data for image in images], StopSignal())


def markdown(results: Mapping[str, Any]) -> str:
    """The results as a Markdown table."""
    measured = results["captions"]
    seeds = len(next(iter(measured.values()))["gain"])

    def row(kind: str) -> str:
        cells = [
            f"{statistics.mean(values):{form}} ± {statistics.stdev(values):{form}}"
            for values, form in zip(measured[kind].values(), (".1%", ".2f", ".2f"), strict=True)
        ]
        return f"| {kind} | {' | '.join(cells)} |"

    return "\n".join(
        [
            f"{results['epochs']} epochs, {seeds} seeds (mean and spread), {results['images']} "
            f"images, torch {results['torch']}, {results['base']}; the base's held-out loss is "
            f"{results['base loss']}. {results[_EQUAL]} of the generated captions equal the "
            "artist's.",
            "",
            "| captions | reduction of the held-out loss | closeness | faithfulness |",
            "| --- | --- | --- | --- |",
            *[row(kind) for kind in measured],
        ]
    )


if __name__ == "__main__":
    main()
