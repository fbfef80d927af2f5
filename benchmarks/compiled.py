"""torch.compile against eager steps on a CPU and the small base: `python -m benchmarks.compiled`.

Uses one batch shape, so that one graph is compiled. Writes the time of the first step, which
includes the compilation, and the median speed of the later steps.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

WARM_UP = 2


def main() -> None:
    """Measure, print and write the results."""
    parser = argparse.ArgumentParser(description="Measure torch.compile on a CPU.")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/compile-cpu.json"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        results = measure(options.steps, Path(scratch))
    print(json.dumps(results, indent=1))
    options.json.write_text(json.dumps(results, indent=1) + "\n")


def measure(steps: int, scratch: Path) -> dict[str, object]:
    """Results of eager and compiled steps in one thread, which is the local command's setting."""
    import torch

    from adapters.diffusion.base.model import load_base
    from adapters.diffusion.fused.blocks import sharing_weights
    from adapters.diffusion.trainer import DiffusionTrainer
    from adapters.images.decode import decode
    from benchmarks.images import drawn_images
    from domain.parameters import TrainingParameters
    from domain.training_plan import TrainingPlan
    from entrypoints.models import SMALL_BASE

    torch.set_num_threads(1)
    base = load_base(str(SMALL_BASE))
    images = [p for p in drawn_images(scratch, 10, size=320) if p.facts.width == p.facts.height]
    parameters = TrainingParameters(
        epochs=steps, resolution=base.native_resolution, validation_epochs=0
    )
    plan = TrainingPlan(style_id=1, images=tuple(images), tags=(), parameters=parameters)
    results: dict[str, object] = {"torch": torch.__version__, "steps": steps}
    for way in ("eager", "compiled"):
        unet = sharing_weights(base.unet)
        if way == "compiled":
            unet.compile(dynamic=False)
        seconds = []
        with DiffusionTrainer(replace(base, unet=unet), decode).open(plan, None) as session:
            for _ in range(WARM_UP + steps):
                started = time.perf_counter()
                session.advance()
                seconds.append(time.perf_counter() - started)
        results[f"{way}: first step, s"] = round(seconds[0], 2)
        results[f"{way}: steps/s (median)"] = round(1 / statistics.median(seconds[WARM_UP:]), 2)
        print(json.dumps(results), flush=True)
    return results


if __name__ == "__main__":
    main()
