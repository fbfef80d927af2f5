"""Do the scores of previews measure style? `python -m benchmarks.style_measures`.

1. Drawn sets whose style strength is set by a dial and whose contents differ: rank correlation of
   closeness with the strength, and the share of drawings whose own prompt wins over a wrong one.
2. Runs on the small base with different learning rates, ranks, epochs and image counts: the
   held-out loss and the previews' true style strength at the checkpoint with the best scores,
   beside those of the last epoch; and the share of drawings whose own prompt wins, with the style
   of the run active.
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

from benchmarks.quality import with_text

if TYPE_CHECKING:
    from adapters.diffusion.base.model import BaseModel
    from benchmarks.true_strength import StrengthMeter
    from domain.results import Preview, PreviewScores

SIDE = 128
SETS = 30
"""Held-out drawn sets."""
STRENGTHS = (0.0, 0.5, 1.0)
RATES = (1e-3, 3e-3, 1e-2, 3e-2)
BATCH = 4
ROUNDS = 5
"""Checkpoints of a run that are scored."""
MEMORISED = 2
"""Runs on this many images memorise them."""
BEGIN, END = "<!-- style measures -->", "<!-- /style measures -->"
"""Marks around the results in a page."""
WON, WON_ALIKE = (
    f"share of comparisons won by the right prompt, drawings in {style}"
    for style in ("the full style", "the run's own strength of style")
)


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
    parser.add_argument("--page", type=Path, help="page to put the table into, at its marks")
    options = parser.parse_args()
    import torch

    from adapters.diffusion.base.model import load_base
    from benchmarks.true_strength import fit_strength
    from entrypoints.models import SMALL_BASE

    torch.set_num_threads(1)  # the base's operations are too small for several threads
    base, began = load_base(str(SMALL_BASE)), time.monotonic()
    meter = fit_strength()
    results: dict[str, Any] = {"dial": dial(base, meter), "runs": []}
    print(json.dumps(results["dial"], indent=1), flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        for number in range(options.runs):
            results["runs"].append(run(base, meter, number, Path(scratch) / str(number)))
            print(json.dumps(results["runs"][-1]), flush=True)
            results["summary"] = summary(results["runs"])
            results["minutes"] = round((time.monotonic() - began) / 60, 1)
            options.json.write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(results.get("summary"), indent=1))
    if options.page:
        page = options.page.read_text("utf-8")
        options.page.write_text(with_text(page, BEGIN, END, markdown(results)), "utf-8")


def dial(base: BaseModel, meter: StrengthMeter) -> dict[str, Any]:
    """Closeness, faithfulness and measured strength of drawn sets."""
    import torch

    from adapters.diffusion.style_measures import encode_previews, faithfulness, style_axis
    from assets.style_dial import CONTENTS

    cpu = torch.device("cpu")
    artist = encode_previews(base, drawings(1.0, 12, 1), cpu)[0]
    strengths = np.random.default_rng(3).uniform(0, 1, SETS)
    contents = [list(CONTENTS)[n % len(CONTENTS)] for n in range(SETS)]
    closeness, metered = [], []
    for n, (strength, content) in enumerate(zip(strengths, contents, strict=True)):
        # As in a run, each set is compared with the base's images of the same prompts.
        sets = [drawings(share, 4, 50 + n, content) for share in (strength, 0.0)]
        styled, plain = (encode_previews(base, drawn, cpu)[0] for drawn in sets)
        metered.append(meter([preview.png for preview in sets[0]]))
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
        "rank correlation of true strength as measured and as drawn": round(
            rank_correlation(strengths, metered), 3
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


def run(base: BaseModel, meter: StrengthMeter, number: int, folder: Path) -> dict[str, Any]:
    """Train one style and score its checkpoints."""
    import torch

    from adapters.diffusion.evaluation import Evaluation
    from adapters.diffusion.objective import objective_of
    from adapters.diffusion.session import DiffusionSession
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
    values: dict[str, Any] = {
        "batch_size": BATCH,
        "resolution": base.native_resolution,
        "validation_epochs": 0,
    }
    prompts = tuple(preview.prompt for preview in drawings(0.0, 4, 9))
    parameters = TrainingParameters(**values, **options, sample_prompts=prompts)
    plan = TrainingPlan(style_id=1, images=images, tags=(), parameters=parameters)
    objective = objective_of(base.noise_schedule, None, cpu)
    scores: dict[int, PreviewScores] = {}
    losses: dict[int, float] = {}
    strengths: dict[int, float] = {}
    with DiffusionTrainer(base, decode, cpu, preview_steps=8).open(plan, None) as session:
        assert isinstance(session, DiffusionSession)
        row = session.model.lora.slot(session.slot)
        probe = Evaluation(session.model, objective, unseen, (), unseen.captions, row, 0)
        base_loss = statistics.fmean(probe.losses()[0])
        while not session.finished:
            step = session.advance()
            if step.epoch_finished and step.epoch % (parameters.epochs // ROUNDS) == 0:
                previews = session.previews(with_lora=True)
                scores[step.epoch] = session.score_previews(previews)
                strengths[step.epoch] = meter([preview.png for preview in previews])
                losses[step.epoch] = statistics.fmean(probe.losses()[0])
        with session.model.lora.showing(row):
            won = {
                WON: won_by_the_right_prompt(base, 1.0),
                WON_ALIKE: won_by_the_right_prompt(base, strengths[max(strengths)]),
            }
    chosen = recommended(scores)
    return {
        "options": {**options, "images": count},
        "closeness": {epoch: round(one.closeness, 3) for epoch, one in scores.items()},
        "faithfulness": {epoch: round(one.faithfulness, 3) for epoch, one in scores.items()},
        "true strength": {epoch: round(one, 3) for epoch, one in strengths.items()},
        "held-out loss": {epoch: round(loss, 4) for epoch, loss in losses.items()},
        **{name: round(share, 3) for name, share in won.items()},
        "recommended": chosen,
        "recommended loss": round(losses[chosen], 4),
        "base loss": round(base_loss, 4),
        "last loss": round(losses[max(losses)], 4),
        "best loss": round(min(losses.values()), 4),
        "recommended strength": round(strengths[chosen], 3),
        "last strength": round(strengths[max(strengths)], 3),
    }


def won_by_the_right_prompt(base: BaseModel, strength: float) -> float:
    """Share of comparisons won by a drawing's own prompt, at a strength of the style between 0
    and 1, with the LoRA that is active now."""
    import torch

    from adapters.diffusion.style_measures import encode_previews, faithfulness

    cpu = torch.device("cpu")
    previews = drawings(min(1.0, max(0.0, strength)), 8, 21)
    latents = encode_previews(base, previews, cpu)[1]
    return faithfulness(base, latents, request(base, previews), cpu)


def summary(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Compare the recommended epochs with the last ones, and average the faithfulness."""
    learnt = [run for run in runs if run["last loss"] < run["base loss"]]
    trained = [run for run in learnt if run["options"]["images"] > MEMORISED]
    memorised = [run for run in learnt if run["options"]["images"] == MEMORISED]

    def mean_of(some: Sequence[Mapping[str, Any]], name: str) -> float | None:
        return round(statistics.fmean(run[name] for run in some), 3) if some else None

    return {
        "runs": len(runs),
        "diverged": len(runs) - len(learnt),
        "held-out loss": compared(runs, "loss", sign=-1),
        "held-out loss, without the diverged": compared(learnt, "loss", sign=-1),
        "true style strength": compared(runs, "strength", sign=1),
        "true style strength, without the diverged": compared(learnt, "strength", sign=1),
        "mean held-out loss, best": round(statistics.fmean(run["best loss"] for run in runs), 4),
        "worst ratio of losses": round(
            max(run["recommended loss"] / run["last loss"] for run in runs), 3
        ),
        "runs on 6 or 12 images": len(trained),
        WON: mean_of(trained, WON),
        WON_ALIKE: mean_of(trained, WON_ALIKE),
        "runs on 2 images": len(memorised),
        f"{WON}, 2 images": mean_of(memorised, WON),
        f"{WON_ALIKE}, 2 images": mean_of(memorised, WON_ALIKE),
    }


def compared(runs: Sequence[Mapping[str, Any]], what: str, sign: int) -> dict[str, Any]:
    """Means at the recommended and the last epoch, and in how many runs the recommended one is
    better, equal and worse. ``sign`` is 1 if higher values are better, else -1."""
    pairs = [(run[f"recommended {what}"], run[f"last {what}"]) for run in runs]
    gains = [sign * (one - last) for one, last in pairs]
    return {
        "recommended": round(statistics.fmean(one for one, _ in pairs), 4),
        "last": round(statistics.fmean(last for _, last in pairs), 4),
        "better, equal, worse": [
            sum(gain > 0 for gain in gains),
            sum(gain == 0 for gain in gains),
            sum(gain < 0 for gain in gains),
        ],
    }


def markdown(results: Mapping[str, Any]) -> str:
    """The results as Markdown tables."""
    summary, dialled = results["summary"], results["dial"]

    def row(name: str, digits: int) -> str:
        one = summary[name]
        counts = " / ".join(map(str, one["better, equal, worse"]))
        return (
            f"| {name} | {one['recommended']:.{digits}f} | {one['last']:.{digits}f} | {counts} |"
        )

    def share(value: float | None) -> str:
        return "-" if value is None else f"{value:.0%}"

    alone = dialled["share of comparisons won by the right prompt, by strength"]
    return "\n".join(
        [
            "| drawings | without a style | style of a run on 6 or 12 images | of a run on 2 |",
            "| --- | --- | --- | --- |",
            f"| in the full style | {share(alone['1.0'])} | {share(summary[WON])} | "
            f"{share(summary[f'{WON}, 2 images'])} |",
            f"| styled as strongly as the run's own previews | | {share(summary[WON_ALIKE])} | "
            f"{share(summary[f'{WON_ALIKE}, 2 images'])} |",
            "",
            "Comparisons won by the right prompt, on average over "
            f"{summary['runs on 6 or 12 images']} and {summary['runs on 2 images']} runs that "
            "did not diverge.",
            "",
            f"| mean of {summary['runs']} runs, {summary['diverged']} of them diverged "
            "| recommended epoch | last epoch | better / equal / worse |",
            "| --- | --- | --- | --- |",
            row("held-out loss", 3),
            row("held-out loss, without the diverged", 3),
            row("true style strength", 2),
            row("true style strength, without the diverged", 2),
        ]
    )


def drawings(strength: float, count: int, seed: int, content: str = "") -> list[Preview]:
    """Drawings with the style at this strength, as previews of their captions."""
    from assets.style_dial import draw_dialled
    from domain.results import Preview

    rng = np.random.default_rng(seed)
    previews = []
    for number in range(count):
        image, caption = draw_dialled(rng, SIDE, strength, content)
        file = BytesIO()
        image.save(file, "PNG")
        previews.append(Preview(caption, number, file.getvalue()))
    return previews


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
