"""Compare our trainer with others: `python -m benchmarks.peers --sd-scripts DIR --python PYTHON`.

Runs this project and the peers in turn, each as a separate command, on the same base model,
images, resolution, batch size, rank and number of steps. Prints steps/s from each program's
progress output, the total time from command to file, peak memory, and the ratios with their
spread. Writes `benchmarks/results/peers-<device>.json`; `python -m benchmarks.pages` puts the
table into the documentation.

The peers are not part of this repository. Check them out and install their requirements:

- sd-scripts: github.com/kohya-ss/sd-scripts with its requirements.txt. Besides torch it needs
  diffusers 0.32.1, transformers 4.54.1, accelerate, toml, voluptuous, imagesize, ftfy, einops and
  opencv; the rest of its requirements is for other scripts. It trains SD 1.x's shapes only.
- diffusers: examples/text_to_image/train_text_to_image_lora.py of the installed version, with
  `datasets`.

Both import torchvision. If no torchvision fits the installed torch, `--stub-torchvision` provides
the few functions that they use.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.peers.measure import Run, run
from benchmarks.peers.programs import Job, Program, diffusers_example, ours, sd_scripts

RESULTS = Path("benchmarks/results")


def main() -> None:
    """Measure, print and write the results."""
    options = _parser().parse_args()
    if not (options.sd_scripts or options.diffusers_example):
        raise SystemExit("name a peer: --sd-scripts DIR or --diffusers-example FILE")
    if options.steps <= options.warm_up:
        raise SystemExit("the warm-up takes all steps: raise --steps or lower --warm-up")
    with tempfile.TemporaryDirectory() as scratch:
        job = _job(options, Path(scratch))
        runs = [
            _shown(run(make(job), options.warm_up))
            for _ in range(options.rounds)
            for make in _programs(options)
        ]
    results = {**_facts(options), **summary(runs)}
    print(json.dumps(results, indent=1))
    target = options.json or RESULTS / f"peers-{results['slug']}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(results, indent=1) + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sd-scripts", type=Path, metavar="DIR", help="a checkout of sd-scripts")
    parser.add_argument(
        "--diffusers-example", type=Path, metavar="FILE", help="path of its script"
    )
    parser.add_argument("--python", default="python3", help="interpreter of sd-scripts")
    parser.add_argument("--diffusers-python", help="interpreter of the example; default: --python")
    parser.add_argument("--stub-torchvision", action="store_true")
    parser.add_argument("--compile", action="store_true", help="torch.compile for the peers")
    parser.add_argument(
        "--base", type=Path, help="diffusers folder; default: SD 1.5's shapes with random weights"
    )
    parser.add_argument("--images", type=Path, help="default: ten images that the project draws")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--resolution", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument(
        "--steps", type=int, default=400, help="use a multiple of the steps per epoch"
    )
    parser.add_argument("--warm-up", type=int, default=40, help="first steps, not measured")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    return parser


def _job(options: argparse.Namespace, scratch: Path) -> Job:
    from benchmarks.full_size import full_size_base, save_base
    from benchmarks.images import drawn_images

    base = options.base
    if base is None:
        base = scratch / "base"
        save_base(full_size_base("cpu"), base)
    images = options.images
    if images is None:
        images = scratch / "images"
        drawn_images(images, 10, size=max(320, options.resolution))
    return Job(
        base=base.resolve(),
        images=images.resolve(),
        scratch=scratch,
        device=options.device,
        resolution=options.resolution,
        batch_size=options.batch_size,
        rank=options.rank,
        steps=options.steps,
        compiled=options.compile,
    )


def _programs(options: argparse.Namespace) -> list[Callable[[Job], Program]]:
    stub: bool = options.stub_torchvision
    programs: list[Callable[[Job], Program]] = [ours]
    if options.sd_scripts:
        checkout = options.sd_scripts.resolve()
        programs.append(
            lambda job: sd_scripts(job, checkout, options.python, stub_torchvision=stub)
        )
    if options.diffusers_example:
        script = options.diffusers_example.resolve()
        python = options.diffusers_python or options.python
        programs.append(lambda job: diffusers_example(job, script, python, stub_torchvision=stub))
    return programs


def _shown(measured: Run) -> Run:
    print(json.dumps(asdict(measured)), flush=True)
    return measured


def summary(runs: list[Run]) -> dict[str, Any]:
    """Medians of each program; median, lowest and highest of our ratio to each peer per round."""
    by_program: dict[str, list[Run]] = {}
    for each in runs:
        by_program.setdefault(each.program, []).append(each)
    mine = next(iter(by_program.values()))
    rows = []
    for name, theirs in by_program.items():
        speed = [a.steps_per_s / b.steps_per_s for a, b in zip(mine, theirs, strict=True)]
        whole = [b.total_s / a.total_s for a, b in zip(mine, theirs, strict=True)]
        gpu = [each.gpu_peak_mb for each in theirs if each.gpu_peak_mb is not None]
        rows.append(
            {
                "program": name,
                "steps_per_s": _rounded(statistics.median(each.steps_per_s for each in theirs)),
                "total_s": round(statistics.median(each.total_s for each in theirs), 1),
                "peak_mb": max(each.peak_mb for each in theirs),
                "gpu_peak_mb": max(gpu) if gpu else None,
                "our_speed_ratio": _spread(speed),
                "our_total_ratio": _spread(whole),
            }
        )
    return {"rounds": len(mine), "rows": rows}


def _spread(ratios: list[float]) -> list[float]:
    return [round(each, 2) for each in (statistics.median(ratios), min(ratios), max(ratios))]


def _rounded(value: float) -> float:
    return round(value, 2 if value >= 1 else 4)


def _facts(options: argparse.Namespace) -> dict[str, Any]:
    import torch

    from benchmarks.gpu.facts import slug

    device = torch.device(options.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    versions = {"this project": _versions(None)}
    if options.sd_scripts:
        versions["sd-scripts"] = {
            "commit": _commit(options.sd_scripts),
            **_versions(options.python),
        }
    if options.diffusers_example:
        versions["diffusers example"] = _versions(options.diffusers_python or options.python)
    return {
        "device": name,
        "slug": slug(name),
        "cores": os.cpu_count(),
        "date": datetime.now(UTC).date().isoformat(),
        "base": "SD 1.5's shapes, random weights" if options.base is None else options.base.name,
        "resolution": options.resolution,
        "batch_size": options.batch_size,
        "rank": options.rank,
        "steps": options.steps,
        "torch_compile": options.compile,
        "versions": versions,
    }


def _versions(python: str | None) -> dict[str, str]:
    """Versions of the libraries in an interpreter; None means the current one."""
    import sys

    libraries = ["torch", "diffusers", "transformers", "accelerate", "peft"]
    code = (
        "import json, importlib.metadata as m\n"
        "found = {}\n"
        f"for name in {libraries}:\n"
        "    try: found[name] = m.version(name)\n"
        "    except m.PackageNotFoundError: pass\n"
        "print(json.dumps(found))"
    )
    command = [python or sys.executable, "-c", code]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    versions: dict[str, str] = json.loads(output)
    return versions


def _commit(checkout: Path) -> str:
    command = ["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


if __name__ == "__main__":
    main()
