"""Effect of each training option on a style: `python -m benchmarks.quality`.

Trains the drawn style set on the small base with one option changed at a time. Measures each
style's loss on held-out images of the same style, over fixed noises and timesteps. Tries learning
rates first, then every other option at the best of them. Several seeds show how much of a
difference is chance. Prints a table and writes it as JSON.

The results hold for the small base only: its best learning rate is far above that of Stable
Diffusion 1.5, whose weights are not available here.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adapters.diffusion.data.dataset import EncodedDataset
    from adapters.diffusion.trainer import DiffusionTrainer
    from domain.image import TrainingImage

LEARNING_RATES = (1e-3, 3e-3, 1e-2, 3e-2)
OPTIONS: tuple[Mapping[str, Any], ...] = (
    {"rank": 4},
    {"rank": 16},
    {"rank": 32},
    {"alpha": 4.0},
    {"alpha": 16.0},
    {"snr_gamma": 5.0},
    {"snr_gamma": 1.0},
    {"noise_offset": 0.05},
    {"noise_offset": 0.1},
    {"caption_dropout": 0.1},
    {"random_flip": True},
    {"lora_dropout": 0.1},
    {"rank": 32, "use_rslora": True},
    {"use_dora": True},
    {"lora_targets": "attention+ff"},
    {"lora_targets": "attention+ff+conv"},
    {"lr_scheduler": "constant_with_warmup"},
    {"lr_scheduler": "linear"},
    {"weight_decay": 0.0},
    {"weight_decay": 0.1},
    {"optimizer": "prodigy", "learning_rate": 1.0},
    {"optimizer": "adamw8bit"},
    {"validation_split": 0.1},
)
BEGIN, END = "<!-- quality -->", "<!-- /quality -->"
"""Marks around the results in a page."""
BASE_LOSS = "base's held-out loss"
PROBE_SEEDS = range(4)
"""Seeds of the sets of noises, which are the same for every setting."""


@dataclass(frozen=True)
class Bench:
    """Parts that all runs share."""

    trainer: DiffusionTrainer
    base: str
    """The base model's shortened fingerprint."""
    images: tuple[TrainingImage, ...]
    common: Mapping[str, Any]
    held_out_loss: Callable[[Any], float]
    """Held-out loss of an open session's style in its present state."""
    seeds: Sequence[int]

    @cached_property
    def base_loss(self) -> float:
        """Held-out loss before training."""
        with self.run({"seed": 0}, trained=False) as session:
            return self.held_out_loss(session)

    def gains(self, options: Mapping[str, Any]) -> list[float]:
        """Relative reduction of the base's held-out loss by the style, for each seed."""
        losses = []
        for seed in self.seeds:
            with self.run({**options, "seed": seed}) as session:
                losses.append(self.held_out_loss(session))
        return [1 - loss / self.base_loss for loss in losses]

    @contextmanager
    def run(self, options: Mapping[str, Any], *, trained: bool = True) -> Iterator[Any]:
        """Open a session, and train it to its end."""
        from domain.parameters import TrainingParameters
        from domain.training_plan import TrainingPlan

        parameters = TrainingParameters(**{**self.common, **options})
        plan = TrainingPlan(style_id=1, images=self.images, tags=(), parameters=parameters)
        with self.trainer.open(plan, None) as session:
            while trained and not session.finished:
                session.advance()
            yield session


def main() -> None:
    """Measure, print and write the results."""
    parser = argparse.ArgumentParser(description="Measure what each training option gains.")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=2, help="runs of each setting (default: 2)")
    parser.add_argument("--only", default="", help="options to try, with commas (default: all)")
    parser.add_argument("--page", type=Path, help="page to put the table into, at its marks")
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--json", type=Path, help="default: benchmarks/results/quality-DEVICE.json"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        results = measure(options, Path(scratch))
    path = options.json or Path(f"benchmarks/results/quality-{options.device}.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n")
    if options.page:
        page = options.page.read_text("utf-8")
        options.page.write_text(with_text(page, BEGIN, END, markdown(results)), "utf-8")


def with_text(page: str, begin: str, end: str, text: str) -> str:
    """Return the page with ``text`` between the marks ``begin`` and ``end``."""
    before, found_begin, rest = page.partition(begin)
    _, found_end, after = rest.partition(end)
    if not found_begin or not found_end:
        raise ValueError(f"the page has no {begin} and {end}")
    return f"{before}{begin}\n{text}\n{end}{after}"


def markdown(results: Mapping[str, Any]) -> str:
    """The results as a Markdown table."""

    def row(result: Mapping[str, Any], options: Mapping[str, Any]) -> str:
        name = " ".join(f"{key}={value}" for key, value in options.items())
        return f"| `{name}` | {result['gain']:.1%} | {result['spread']:.1%} |"

    reference = results["reference"]["options"]
    changed = [
        row(result, {k: v for k, v in result["options"].items() if reference.get(k) != v})
        for result in results["one option changed"]
    ]
    return "\n".join(
        [
            f"{results['epochs']} epochs, {len(results['seeds'])} seeds, {results['device']}, "
            f"torch {results['torch']}, {results['base']}; the base's held-out loss is "
            f"{results[BASE_LOSS]}.",
            "",
            "| setting | reduction of the held-out loss | spread between seeds |",
            "| --- | --- | --- |",
            *[row(result, result["options"]) for result in results["learning rates"]],
            f"| at `learning_rate={reference['learning_rate']}`, one option changed: | | |",
            *changed,
        ]
    )


def measure(options: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """Every setting's gain, with the device, versions and common settings."""
    import diffusers
    import torch

    started = time.monotonic()
    only = set(filter(None, options.only.split(",")))
    bench = prepare(options, scratch)
    print(f"base's held-out loss {bench.base_loss:.4f}\n{'setting':44} gain, mean and spread")
    rates = _table(bench, [{"learning_rate": rate} for rate in LEARNING_RATES])
    best = max(rates, key=lambda row: float(row["gain"]))
    at_best: dict[str, Any] = dict(best["options"])
    print(f"at learning_rate={at_best['learning_rate']:g}:")
    chosen = [extra for extra in OPTIONS if not only or only & extra.keys()]
    rows = _table(bench, [{**at_best, **extra} for extra in chosen if _installed(extra)])
    return {
        "device": options.device,
        "processor": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "base": bench.base,
        "epochs": options.epochs,
        "seeds": list(bench.seeds),
        "images": len(bench.images),
        BASE_LOSS: round(bench.base_loss, 5),
        "learning rates": rates,
        "reference": best,
        "one option changed": rows,
        "minutes": round((time.monotonic() - started) / 60, 1),
    }


def prepare(options: argparse.Namespace, scratch: Path, trigger_word: str | None = None) -> Bench:
    """Draw the images and load the base. Held-out captions start with the trigger word."""
    import torch

    from adapters.diffusion.base.model import load_base
    from adapters.diffusion.data.captions import with_trigger_word
    from adapters.diffusion.data.text import tokens_of
    from adapters.diffusion.evaluation import Evaluation
    from adapters.diffusion.objective import objective_of
    from adapters.diffusion.session import DiffusionSession
    from adapters.diffusion.trainer import DiffusionTrainer
    from adapters.images.decode import decode
    from entrypoints.models import SMALL_BASE

    torch.set_num_threads(1)  # the base's operations are too small for several threads
    device = torch.device(options.device)
    base = load_base(str(SMALL_BASE))
    trainer = DiffusionTrainer(base, decode, device)
    objective = objective_of(base.noise_schedule, None, device)
    unseen_images = [
        replace(image, caption=with_trigger_word(image.caption or "", trigger_word))
        for image in draw_images(scratch / "unseen", seed=2)
    ]
    unseen = encode_images(base, unseen_images, device)
    tokens = tokens_of(base, dict.fromkeys(["", *(i.caption or "" for i in unseen_images)]))

    def held_out_loss(session: DiffusionSession) -> float:
        model, row = session.model, session.model.lora.slot(session.slot)
        captions = unseen.captions if model.text_encoder is None else tokens.to(device)
        return statistics.mean(
            statistics.mean(
                Evaluation(model, objective, unseen, (), captions, row, seed).losses()[0]
            )
            for seed in PROBE_SEEDS
        )

    return Bench(
        trainer=trainer,
        base=f"small_base {base.fingerprint[:12]}",
        images=draw_images(scratch / "seen", seed=1),
        common={
            **{"epochs": options.epochs, "batch_size": 4, "resolution": base.native_resolution},
            "validation_epochs": 0,
        },
        held_out_loss=held_out_loss,
        seeds=range(options.seeds),
    )


def draw_images(folder: Path, seed: int, count: int = 12) -> tuple[TrainingImage, ...]:
    """Draw images in one style, with their captions."""
    from assets.drawing import draw_style_set
    from benchmarks.images import read_images

    return read_images(draw_style_set(folder, count=count, seed=seed))


def encode_images(base: Any, images: Sequence[TrainingImage], device: Any) -> EncodedDataset:
    """Encode images at the base's resolution, with their captions."""
    from adapters.diffusion.data.dataset import encode_dataset
    from adapters.images.decode import decode

    size = (base.native_resolution,) * 2
    decoded_images = [(decode(image.data), size) for image in images]
    captions = [image.caption or "" for image in images]
    return encode_dataset(base, decoded_images, captions, flipped=False, device=device)


def _installed(options: Mapping[str, Any]) -> bool:
    """Whether the setting's optimizer is installed."""
    from adapters.diffusion.optimizer_libraries import require_optimizer
    from domain.failure import TrainingFailed
    from domain.parameters import OptimizerName

    try:
        require_optimizer(OptimizerName(options.get("optimizer", "adamw")))
    except TrainingFailed as error:
        print(f"left out: {error.failure.message}")
        return False
    return True


def _table(bench: Bench, settings: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Measure each setting, print its line at once, and return the rows."""
    rows = []
    for options in settings:
        gains = bench.gains(options)
        spread = statistics.stdev(gains) if len(gains) > 1 else 0.0
        name = " ".join(f"{key}={value}" for key, value in options.items())
        print(f"{name:44} {statistics.mean(gains):6.1%} ± {spread:.1%}", flush=True)
        rows.append(
            {
                "options": dict(options),
                "gain": round(statistics.mean(gains), 4),
                "spread": round(spread, 4),
                "gains": [round(gain, 4) for gain in gains],
            }
        )
    return rows


if __name__ == "__main__":
    main()
