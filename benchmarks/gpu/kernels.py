"""Where a step's time goes on a GPU, kernel by kernel: `python -m benchmarks.gpu.kernels`.

Random weights in SD 1.5's shapes, 512 px, rank 8, as in ``benchmarks.gpu``. Prints the time of one
step's kernels, summed by kind and by name. The rest of the step's time is gaps between kernels.
"""

from __future__ import annotations

import argparse
import re
import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import torch

from adapters.diffusion.execution import ExecutionOptions, choose_execution
from benchmarks.gpu.bench import Bench, prepare, watching_a_step
from benchmarks.gpu.facts import wait_for

_KINDS = {
    "ours": r"^(moments|normalise|gradient_|layer_norm|gate|add$)",
    "layout": r"nchwToNhwc|nhwcToNchw|transpose",
    "attention": r"flash|fmha|attention|sdpa",
    "convolution": r"conv|fprop|dgrad|wgrad|implicit|xmma_.*nhwc",
    "product": r"gemm|cutlass|nvjet|cublas|splitK|gemv",
    "norm": r"norm|moments|welford|gradients_cuda|ComputeFusedParams|ComputeInternal",
    "copy": r"copy|memcpy|memset|cat|fill",
    "pointwise": r"elementwise|vectorized|unrolled",
    "sum": r"reduce",
}
"""Kinds of kernels, and patterns of their names; the first match counts."""
_SHOWN = 90
"""Characters shown of a kernel's name."""


def main() -> None:
    """Measure and print the results."""
    parser = argparse.ArgumentParser(description="Measure where a training step's time goes.")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small base, 64 px: only a rehearsal")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--top", type=int, default=25, help="kernels listed by name")
    parser.add_argument("--channels-last", action=argparse.BooleanOptionalAction)
    parser.add_argument("--fused", action=argparse.BooleanOptionalAction)
    options = parser.parse_args()
    options.seconds = 0.0
    device = torch.device(options.device)
    chosen = choose_execution(device)
    layout = chosen.channels_last if options.channels_last is None else options.channels_last
    fused = layout and (chosen.fused if options.fused is None else options.fused)
    execution = ExecutionOptions(dtype=chosen.dtype, channels_last=layout, fused=fused)
    with tempfile.TemporaryDirectory() as scratch:
        bench = prepare(options, device, Path(scratch))
        for batch in options.batches:
            show(f"batch {batch}", kernels_of_step(bench, execution, batch), options.top)


def kernels_of_step(
    bench: Bench, execution: ExecutionOptions, batch: int
) -> dict[str, tuple[float, int]]:
    """Microseconds and calls of each kernel in an eager step."""
    from torch.profiler import ProfilerActivity, profile

    on_gpu = bench.device.type == "cuda"
    activity = ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU

    def profiled(step: Callable[[], object]) -> profile:
        with profile(activities=[activity]) as profiler:
            step()
            wait_for(bench.device)
        return profiler

    with bench.trainer(execution).open(bench.plan(batch), None) as session:
        for _ in range(3):
            session.advance()
        # A GPU's kernels are recorded whatever thread launches them.
        profiler = profiled(session.advance) if on_gpu else watching_a_step(session, profiled)
    kernels: dict[str, tuple[float, int]] = {}
    for event in profiler.key_averages():
        micros = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        if micros:
            kernels[event.key] = micros, event.count
    return kernels


def show(title: str, kernels: dict[str, tuple[float, int]], top: int) -> None:
    """Print the sums by kind, then the slowest kernels by name."""
    whole = sum(micros for micros, _ in kernels.values())
    calls = sum(count for _, count in kernels.values())
    print(f"\n{title}: {whole / 1e3:.2f} ms in {calls} kernels")
    kinds: dict[str, list[tuple[float, int]]] = defaultdict(list)
    for name, spent in kernels.items():
        kinds[_kind(name)].append(spent)
    for kind, spent in sorted(kinds.items(), key=lambda item: -sum(m for m, _ in item[1])):
        _line(sum(m for m, _ in spent), sum(c for _, c in spent), whole, kind)
    print()
    for name, (micros, count) in sorted(kernels.items(), key=lambda item: -item[1][0])[:top]:
        _line(micros, count, whole, re.sub(r"\s+", " ", name)[:_SHOWN])


def _kind(name: str) -> str:
    for kind, pattern in _KINDS.items():
        if re.search(pattern, name, re.IGNORECASE):
            return kind
    return "other"


def _line(micros: float, count: int, whole: float, what: str) -> None:
    print(f"{micros / 1e3:9.3f} ms {micros / whole:6.1%} {count:6d} x  {what}")


if __name__ == "__main__":
    main()
