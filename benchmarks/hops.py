"""Number of files and functions in one training step, or in one task.

`python -m benchmarks.hops` traces one step on the small base, from ``advance`` to its return.
`python -m benchmarks.hops --task` traces one task with a spool folder and the in-memory trainer,
from the built worker's first receive to the empty queue.

Shows how much code a reader must follow. Counts the product's files and functions that are called
in any thread, and the product's frames in the deepest stack. Comprehensions count as part of their
function.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adapters.diffusion.trainer import DiffusionTrainer
    from domain.training_plan import TrainingPlan

ROOT = Path(__file__).resolve().parents[1]
_FOLDERS = ("adapters", "application", "domain", "entrypoints")
_PRODUCT = tuple(f"{ROOT / folder}/" for folder in _FOLDERS)
_OBSERVERS = (
    "adapters/logs/",
    "adapters/metrics/",
    "adapters/status_page/",
    "adapters/common/event_texts.py",  # called by observers only
)
_PARTS_OF_FUNCTIONS = {"<listcomp>", "<genexpr>", "<dictcomp>", "<setcomp>"}
_STEP = 3
"""Number of the traced step: the first two steps of a shape are not recorded."""


@dataclass
class Hops:
    """Files and functions that one step or task calls."""

    files: set[str] = field(default_factory=set)
    functions: set[tuple[str, str]] = field(default_factory=set)
    """File and qualified name of each function."""
    deepest: Sequence[str] = ()
    """Qualified names of the product's frames in the deepest stack, the outermost first."""

    @property
    def counts(self) -> tuple[int, int, int]:
        """Number of files, of functions, and of frames in the deepest stack."""
        return len(self.files), len(self.functions), len(self.deepest)

    @property
    def without_observers(self) -> Hops:
        """The same, without the files of log, metrics and status page."""
        functions = {found for found in self.functions if not found[0].startswith(_OBSERVERS)}
        return Hops({file for file, _ in functions}, functions, self.deepest)


LIMITS = {
    "plain": (6, 20, 8),
    "recorded": (8, 30, 9),
    "two styles at once": (8, 30, 9),
}
"""Maximum number of files, functions and frames of a step. A test checks them."""
TASK_LIMITS = (36, 220, 20)
"""The same of a task, without observers."""


def main() -> None:
    """Trace each way to run a step, or one task, and print the calls."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", action="store_true", help="trace one task instead of steps")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        if arguments.task:
            traced = {"one task": hops_of_a_task(Path(scratch))}
        else:
            traced = hops_of_each_way(Path(scratch))
        for name, hops in traced.items():
            files, functions, frames = hops.counts
            print(f"{name}: {files} files, {functions} functions, {frames} frames deep")
            files, functions, _ = hops.without_observers.counts
            print(f"  without observers: {files} files, {functions} functions")
            for file in sorted(hops.files):
                called = sorted(function for owner, function in hops.functions if owner == file)
                print(f"  {file}: {', '.join(called)}")
            print(f"  deepest: {' > '.join(hops.deepest)}\n")


def hops_of_each_way(scratch: Path) -> dict[str, Hops]:
    """Calls of an eager step on a CPU, of a recorded step, and of a step of two styles."""
    from adapters.diffusion.base.model import load_base
    from adapters.diffusion.execution import ExecutionOptions
    from adapters.diffusion.trainer import DiffusionTrainer
    from adapters.images.decode import decode
    from entrypoints.models import SMALL_BASE
    from tests.diffusion.fake_cuda_graph import FakeGraphRecorder

    base = load_base(str(SMALL_BASE))
    plans = [_plan(scratch, seed) for seed in (1, 2)]
    recorded = ExecutionOptions(make_recorder=FakeGraphRecorder)
    ways: dict[str, Callable[[], DiffusionTrainer]] = {
        "plain": lambda: DiffusionTrainer(base, decode),
        "recorded": lambda: DiffusionTrainer(base, decode, execution=recorded),
        "two styles at once": lambda: DiffusionTrainer(base, decode, slots=2, max_wait=60.0),
    }
    return {
        name: _hops(make, plans if name == "two styles at once" else plans[:1])
        for name, make in ways.items()
    }


def hops_of_a_task(scratch: Path) -> Hops:
    """Calls of a worker that trains one task from a spool folder into folders."""
    from dependency_injector import providers

    from adapters.memory import ManualClock, MemoryTrainer
    from adapters.schemas.task import encode_task
    from application.stop_signal import StopSignal
    from assets.drawing import draw_style_set
    from domain.parameters import RequestedParameters
    from domain.task import TrainingTask
    from entrypoints.bootstrap import open_container
    from entrypoints.settings import Settings

    # No periodic call falls into the task, however slow the machine is.
    periods = dict.fromkeys(("progress_every", "cancel_poll", "lease_seconds"), 3600)
    settings = Settings.model_validate({"spool_dir": scratch, "fetch_concurrency": 2, **periods})
    bucket = settings.images
    files = draw_style_set(
        settings.storage_folder / bucket.name, count=settings.min_images, seed=1, size=320
    )
    task = TrainingTask(
        task_id="550e8400-e29b-41d4-a716-446655440000",
        style_id=1,
        images=tuple(bucket.at(file.name) for file in files),
        requested=RequestedParameters({"epochs": 20}),
    )
    hops, on = Hops(), threading.Event()
    with open_container(settings) as container:
        container.trainer.override(providers.Object(MemoryTrainer(ManualClock())))
        container.queue().publish(encode_task(task))
        worker_pool = container.worker_pool()
        on.set()
        with _tracing(hops, on):
            worker_pool(StopSignal(), until_empty=True)
    return hops


def _plan(folder: Path, seed: int) -> TrainingPlan:
    from benchmarks.images import drawn_images
    from domain.parameters import TrainingParameters
    from domain.training_plan import TrainingPlan

    parameters = TrainingParameters(epochs=1, resolution=64, seed=seed, validation_epochs=0)
    images = drawn_images(folder / str(seed), 2 * _STEP, size=320)
    return TrainingPlan(style_id=seed, images=images, tags=(), parameters=parameters)


def _hops(make: Callable[[], DiffusionTrainer], plans: Sequence[TrainingPlan]) -> Hops:
    hops, on = Hops(), threading.Event()
    with _tracing(hops, on), ExitStack() as stack:
        trainer = make()
        sessions = [stack.enter_context(trainer.open(plan, None)) for plan in plans]
        for number in range(1, _STEP + 1):
            if number == _STEP:
                on.set()
            threads = [threading.Thread(target=session.advance) for session in sessions]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            on.clear()
    return hops


@contextmanager
def _tracing(hops: Hops, on: threading.Event) -> Iterator[None]:
    """Record calls of the product's functions in this thread, and in threads started meanwhile."""

    def note(frame: FrameType, event: str, _: Any) -> None:
        if event != "call" or not on.is_set() or not _counts(frame.f_code):
            return
        code = frame.f_code
        file = str(Path(code.co_filename).relative_to(ROOT))
        hops.files.add(file)
        hops.functions.add((file, code.co_qualname))
        stack = []
        outer: FrameType | None = frame
        while outer is not None:
            if _counts(outer.f_code):
                stack.append(outer.f_code.co_qualname)
            outer = outer.f_back
        if len(stack) > len(hops.deepest):
            hops.deepest = stack[::-1]

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        yield
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type] # typeshed requires a function


def _counts(code: CodeType) -> bool:
    return code.co_filename.startswith(_PRODUCT) and code.co_name not in _PARTS_OF_FUNCTIONS


if __name__ == "__main__":
    sys.exit(main())
