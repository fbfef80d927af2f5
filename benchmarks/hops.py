"""Number of files and functions in one training step: `python -m benchmarks.hops`.

Shows how much code a reader must follow. Traces one step on the small base, from ``advance`` to
its return, in all threads. Counts the product's files and functions that are called, and the
product's frames in the deepest stack. Comprehensions count as part of their function.
"""

from __future__ import annotations

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
    from application.ports import TrainingPlan

ROOT = Path(__file__).resolve().parents[1]
_PRODUCT = tuple(f"{ROOT / folder}/" for folder in ("adapters", "application", "domain"))
_PARTS_OF_FUNCTIONS = {"<listcomp>", "<genexpr>", "<dictcomp>", "<setcomp>"}
_STEP = 3
"""Number of the traced step: the first two steps of a shape are not recorded."""


@dataclass
class Hops:
    """Files and functions that one step calls."""

    files: set[str] = field(default_factory=set)
    functions: set[tuple[str, str]] = field(default_factory=set)
    """File and qualified name of each function."""
    deepest: Sequence[str] = ()
    """Qualified names of the product's frames in the deepest stack, the outermost first."""

    @property
    def counts(self) -> tuple[int, int, int]:
        """Number of files, of functions, and of frames in the deepest stack."""
        return len(self.files), len(self.functions), len(self.deepest)


LIMITS = {
    "plain": (6, 20, 8),
    "recorded": (8, 30, 9),
    "two styles at once": (8, 30, 9),
}
"""Maximum number of files, functions and frames. A test checks them."""


def main() -> None:
    """Trace each way to run a step, and print its calls."""
    with tempfile.TemporaryDirectory() as scratch:
        for name, hops in hops_of_each_way(Path(scratch)).items():
            files, functions, frames = hops.counts
            print(f"{name}: {files} files, {functions} functions, {frames} frames deep")
            for file in sorted(hops.files):
                called = sorted(function for owner, function in hops.functions if owner == file)
                print(f"  {file}: {', '.join(called)}")
            print(f"  deepest: {' > '.join(hops.deepest)}\n")


def hops_of_each_way(scratch: Path) -> dict[str, Hops]:
    """Calls of an eager step on a CPU, of a recorded step, and of a step of two styles."""
    from adapters.diffusion.backend import Backend
    from adapters.diffusion.base.model import load_base
    from adapters.diffusion.trainer import DiffusionTrainer
    from adapters.images.decode import decode
    from benchmarks.full_size import SMALL_BASE
    from tests.diffusion.fake_cuda_graph import Tape

    base = load_base(str(SMALL_BASE))
    plans = [_plan(scratch, seed) for seed in (1, 2)]
    recorded = Backend(cuda_graphs=True)
    ways: dict[str, Callable[[], DiffusionTrainer]] = {
        "plain": lambda: DiffusionTrainer(base, decode),
        "recorded": lambda: DiffusionTrainer(base, decode, backend=recorded, make_recorder=Tape),
        "two styles at once": lambda: DiffusionTrainer(base, decode, slots=2, patience=60.0),
    }
    return {
        name: _hops(make, plans if name == "two styles at once" else plans[:1])
        for name, make in ways.items()
    }


def _plan(folder: Path, seed: int) -> TrainingPlan:
    from application.ports import TrainingPlan
    from benchmarks.images import drawn_images
    from domain.parameters import TrainingParameters

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
    """Record the product's functions that are called in threads started within the block."""

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
    try:
        yield
    finally:
        threading.setprofile(None)  # type: ignore[arg-type] # typeshed requires a function


def _counts(code: CodeType) -> bool:
    return code.co_filename.startswith(_PRODUCT) and code.co_name not in _PARTS_OF_FUNCTIONS


if __name__ == "__main__":
    sys.exit(main())
