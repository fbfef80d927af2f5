"""Do the scores of previews measure style? `python -m benchmarks.style_measures`.

1. Drawn sets whose style strength is set by a dial and whose contents differ: rank correlation of
   closeness with the strength, and the share of drawings whose own prompt wins over a wrong one.
2. Runs on the small base with different learning rates, ranks, epochs and image counts: the
   held-out loss at the checkpoint with the best scores beside that of the last epoch.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

if TYPE_CHECKING:
    from adapters.diffusion.base.model import BaseModel
    from domain.preview import Preview, PreviewScores

SIDE = 128
SETS = 30
"""Held-out drawn sets."""
STRENGTHS = (0.0, 0.5, 1.0)
RATES = (1e-3, 3e-3, 1e-2, 3e-2)
BATCH = 4
ROUNDS = 5
"""Checkpoints of a run that are scored."""


def rank_correlation(one: ArrayLike, other: ArrayLike) -> float:
    """Spearman's rank correlation of values without ties."""
    ranks = [np.argsort(np.argsort(values)).astype(float) for values in (one, other)]
    return float(np.corrcoef(*ranks)[0, 1])


def recommended(scores: Mapping[int, PreviewScores]) -> int:
    """The epoch with the highest product of closeness and faithfulness."""
    return max(scores, key=lambda epoch: scores[epoch].closeness * scores[epoch].faithfulness)


def main() -> None:
    """Measure, print and write the results."""
    parser = argparse.ArgumentParser(description="Test the scores of previews on known styles.")
    parser.add_argument("--runs", type=int, default=30, help="runs to compare (default: 30)")
    parser.add_argument(
        "--json", type=Path, default=Path("benchmarks/results/style-measures-cpu.json")
    )
    options = parser.parse_args()
    import torch

    from adapters.diffusion.base.model import load_base
    from entrypoints.default_base import SMALL_BASE

    torch.set_num_threads(1)  # the base's operations are too small for several threads
    base, began = load_base(str(SMALL_BASE)), time.monotonic()
    results: dict[str, Any] = {"dial": dial(base), "runs": []}
    print(json.dumps(results["dial"], indent=1), flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        for number in range(options.runs):
            results["runs"].append(run(base, number, Path(scratch) / str(number)))
            print(json.dumps(results["runs"][-1]), flush=True)
            results["summary"] = summary(results["runs"])
            results["minutes"] = round((time.monotonic() - began) / 60, 1)
            options.json.write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(results.get("summary"), indent=1))


def dial(base: BaseModel) -> dict[str, Any]:
    """Closeness and faithfulness of drawn sets."""
    import torch

    from adapters.diffusion.style_measures import encode_previews, faithfulness, style_axis
    from assets.style_dial import CONTENTS

    cpu = torch.device("cpu")
    artist = encode_previews(base, drawings(1.0, 12, 1), cpu)[0]
    strengths = np.random.default_rng(3).uniform(0, 1, SETS)
    contents = [list(CONTENTS)[n % len(CONTENTS)] for n in range(SETS)]
    closeness = []
    for n, (strength, content) in enumerate(zip(strengths, contents, strict=True)):
        # As in a run, each set is compared with the base's images of the same prompts.
        styled, plain = (
            encode_previews(base, drawings(share, 4, 50 + n, content), cpu)[0]
            for share in (strength, 0.0)
        )
        closeness.append(style_axis(artist, plain).closeness(styled))
    residuals = np.asarray(closeness) - np.polyval(np.polyfit(strengths, closeness, 1), strengths)
    won = {}
    for strength in STRENGTHS:
        previews = drawings(strength, 20, 7)
        latents = encode_previews(base, previews, cpu)[1]
        won[str(strength)] = round(faithfulness(base, latents, request(base, previews), cpu), 3)
    return {
        "sets": SETS,
        "rank correlation of closeness and strength": round(
            rank_correlation(strengths, closeness), 3
        ),
        "mean residual by content": {
            content: round(
                float(
                    np.mean([r for r, c in zip(residuals, contents, strict=True) if c == content])
                ),
                3,
            )
            for content in CONTENTS
        },
        "share of comparisons won by the right prompt, by strength": won,
    }


def run(base: BaseModel, number: int, folder: Path) -> dict[str, Any]:
    """Train one style and score its checkpoints."""
    import torch

    from adapters.diffusion.evaluation import Evaluation
    from adapters.diffusion.objective import objective_of
    from adapters.diffusion.session import DiffusionSession
    from adapters.diffusion.style_measures import encode_previews, faithfulness
    from adapters.diffusion.trainer import DiffusionTrainer
    from adapters.images.decode import decode
    from benchmarks.quality import draw_images, encode_images
    from domain.parameters import TrainingParameters
    from domain.training_plan import TrainingPlan

    rng, cpu = np.random.default_rng(number), torch.device("cpu")
    count = int(rng.choice([2, 6, 12]))
    options: dict[str, Any] = {
        "learning_rate": RATES[number % len(RATES)],
        "rank": int(rng.choice([4, 8, 16])),
        "epochs": int(rng.choice([30, 60, 120])) // -(-count // BATCH),
        "lr_scheduler": str(rng.choice(["cosine", "constant"])),
        "seed": number,
    }
    images = draw_images(folder / "seen", 100 + number, count)
    unseen = encode_images(base, draw_images(folder / "unseen", 2, 8), cpu)
    values = {"batch_size": BATCH, "resolution": base.native_resolution, "validation_epochs": 0}
    prompts = tuple(preview.prompt for preview in drawings(0.0, 4, 9))
    parameters = TrainingParameters(**values, **options, sample_prompts=prompts)
    plan = TrainingPlan(style_id=1, images=images, tags=(), parameters=parameters)
    objective = objective_of(base.noise_schedule, None, cpu)
    scores: dict[int, PreviewScores] = {}
    losses: dict[int, float] = {}
    with DiffusionTrainer(base, decode, cpu, preview_steps=8).open(plan, None) as session:
        assert isinstance(session, DiffusionSession)
        row = session.model.lora.slot(session.slot)
        probe = Evaluation(session.model, objective, unseen, (), unseen.captions, row, 0)
        while not session.finished:
            step = session.advance()
            if step.epoch_finished and step.epoch % (parameters.epochs // ROUNDS) == 0:
                scores[step.epoch] = session.judge(session.previews(adapted=True))
                losses[step.epoch] = statistics.fmean(probe.losses()[0])
        styled = drawings(1.0, 8, 21)
        latents = encode_previews(base, styled, cpu)[1]
        with session.model.lora.showing(row):
            won = faithfulness(base, latents, request(base, styled), cpu)
    chosen = recommended(scores)
    return {
        "options": {**options, "images": count},
        "closeness": {epoch: round(one.closeness, 3) for epoch, one in scores.items()},
        "faithfulness": {epoch: round(one.faithfulness, 3) for epoch, one in scores.items()},
        "held-out loss": {epoch: round(loss, 4) for epoch, loss in losses.items()},
        "share of comparisons won by the right prompt, of drawings in the style": round(won, 3),
        "recommended": chosen,
        "recommended loss": round(losses[chosen], 4),
        "last loss": round(losses[max(losses)], 4),
        "best loss": round(min(losses.values()), 4),
    }


def summary(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Compare the recommended epochs with the last ones."""
    ratios = [run["recommended loss"] / run["last loss"] for run in runs]
    return {
        "runs": len(runs),
        "mean held-out loss, recommended": round(
            statistics.fmean(run["recommended loss"] for run in runs), 4
        ),
        "mean held-out loss, last": round(statistics.fmean(run["last loss"] for run in runs), 4),
        "mean held-out loss, best": round(statistics.fmean(run["best loss"] for run in runs), 4),
        "recommended better, equal, worse": [
            sum(ratio < 1 for ratio in ratios),
            sum(ratio == 1 for ratio in ratios),
            sum(ratio > 1 for ratio in ratios),
        ],
        "worst ratio": round(max(ratios), 3),
    }


def drawings(strength: float, count: int, seed: int, content: str = "") -> list[Preview]:
    """Drawings with the style at this strength, as previews of their captions."""
    from assets.style_dial import draw_dialled
    from domain.preview import Preview

    rng = np.random.default_rng(seed)
    found = []
    for number in range(count):
        image, caption = draw_dialled(rng, SIDE, strength, content)
        file = BytesIO()
        image.save(file, "PNG")
        found.append(Preview(caption, number, file.getvalue()))
    return found


def request(base: BaseModel, previews: Sequence[Preview]) -> Any:
    """The request that these previews fulfil."""
    import torch

    from adapters.diffusion.data.text import encode_captions
    from adapters.diffusion.preview import STEPS, PreviewRequest

    prompts = [preview.prompt for preview in previews]
    states = encode_captions(base, ["", *prompts], torch.device("cpu"))
    return PreviewRequest(tuple(prompts), states[1:], states[:1], 0, SIDE, 75, STEPS)


if __name__ == "__main__":
    main()
