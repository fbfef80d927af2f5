"""Effect of captions on a style: `python -m benchmarks.captions`.

Trains the drawn style set on the small base with the artist's captions, with captions that the
small captioner makes, and with the trigger word alone. Measures each style's loss on held-out
images of the same style as `benchmarks.quality` does. All prompts of that measurement start with
the trigger word.
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

from benchmarks.quality import prepare, with_text

if TYPE_CHECKING:
    from domain.image import TrainingImage

TRIGGER_WORD = "inkwash"
LEARNING_RATE = 0.01
"""The best one in the table of `benchmarks.quality`."""
RESULTS = Path("benchmarks/results/captions-cpu.json")
BEGIN, END = "<!-- captions -->", "<!-- /captions -->"
"""Marks around the results in a page."""
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
        options.page.write_text(with_text(page, BEGIN, END, _markdown(results)), "utf-8")


def measure(options: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """The gain with each kind of caption, for each seed."""
    import torch

    bench = prepare(options, scratch, trigger_word=TRIGGER_WORD)
    made = _described(bench.images)
    equal = sum(image.caption == text for image, text in zip(bench.images, made, strict=True))
    kinds = {
        "the artist's captions": [image.caption for image in bench.images],
        "generated captions": made,
        "the trigger word only": [None] * len(made),
    }
    rows = {}
    for kind, captions in kinds.items():
        images = tuple(
            replace(image, caption=caption)
            for image, caption in zip(bench.images, captions, strict=True)
        )
        with_captions = replace(bench, images=images)
        rows[kind] = with_captions.gains(
            {"learning_rate": LEARNING_RATE, "trigger_word": TRIGGER_WORD}
        )
        print(f"{kind:24} {statistics.mean(rows[kind]):6.1%}", flush=True)
    return {
        "torch": torch.__version__,
        "base": bench.base,
        "epochs": options.epochs,
        "base loss": round(bench.base_loss, 5),
        "images": len(made),
        _EQUAL: equal,
        "gains": {kind: [round(gain, 4) for gain in gains] for kind, gains in rows.items()},
    }


def _described(images: Sequence[TrainingImage]) -> list[str]:
    from adapters.captioner import TransformersCaptioner
    from adapters.images.decode import decode
    from application.stop_signal import StopSignal
    from entrypoints.default_base import SMALL_BASE

    captioner = TransformersCaptioner(str(SMALL_BASE.parent / "small_captioner"), "cpu", decode)
    return captioner.describe([image.data for image in images], StopSignal())


def _markdown(results: Mapping[str, Any]) -> str:
    gains = results["gains"]
    seeds = len(next(iter(gains.values())))
    return "\n".join(
        [
            f"{results['epochs']} epochs, {seeds} seeds, {results['images']} images, torch "
            f"{results['torch']}, {results['base']}; the base's held-out loss is "
            f"{results['base loss']}. {results[_EQUAL]} of the generated captions equal the "
            "artist's.",
            "",
            "| captions | reduction of the held-out loss | spread between seeds |",
            "| --- | --- | --- |",
            *[
                f"| {kind} | {statistics.mean(row):.1%} | {statistics.stdev(row):.1%} |"
                for kind, row in gains.items()
            ],
        ]
    )


if __name__ == "__main__":
    main()
