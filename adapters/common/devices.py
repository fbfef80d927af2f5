"""Names of devices, which of them exist on this machine, and how many jobs fit a GPU."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import takewhile

from domain.errors import UserError

MAX_JOBS = 8
"""More jobs gain nothing: a batch of 8 keeps an H200 busy."""
_GIB = 2**30
_FIXED = 3.5 * _GIB
"""Base model in 16 bits, the encoders while they encode, and libraries' workspaces: the maximum
measured on an H200 for a job of one image per step."""
_OF_STYLE = 0.75 * _GIB
"""Feature maps of one image at 512 px, and the weights and optimizer of its style. On an H200
each further image of a batch took 0.6 GiB."""
_REMEDY = "give cpu, cuda, or GPUs by their numbers such as cuda:1 or cuda:0,cuda:1"


def parse_devices(text: str) -> tuple[str, ...]:
    """Parse a comma-separated list of devices; work for a single device goes to the first.

    Raises:
        ValueError: the text is not a valid list; the message is the remedy.
    """
    names = tuple(part.strip() for part in text.split(","))
    if names in {("cpu",), ("cuda",)}:
        return names
    if not all(re.fullmatch(r"cuda:(0|[1-9]\d?)", name) for name in names):
        raise ValueError(_REMEDY)
    if len(set(names)) < len(names):
        raise ValueError("give each GPU once")
    return names


def gpus_of_torch() -> int:
    """Number of GPUs that torch can use; 0 if the driver is incompatible."""
    import torch

    # device_count() also counts GPUs with an incompatible driver; is_available() does not.
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def devices_present(text: str | None, gpus: Callable[[], int]) -> tuple[str, ...]:
    """The named devices; by default a GPU if there is one, else the CPU.

    Args:
        gpus: counts the GPUs usable under CUDA_VISIBLE_DEVICES, driver and torch; called only if
            needed.

    Raises:
        ValueError: a named device does not exist, or ``text`` is not a list of devices; the
            message is the remedy.
    """
    if text is None:
        return ("cuda",) if gpus() else ("cpu",)
    names = parse_devices(text)
    if names == ("cpu",):
        return names
    count = gpus()
    if not count:
        raise ValueError(
            "torch finds no GPU here; install its CUDA build and a driver that fits it, give the "
            "container the GPU, or use cpu"
        )
    missing = [name for name in names if int(name.partition(":")[2] or 0) >= count]
    if missing:
        there = "only cuda:0" if count == 1 else f"cuda:0 to cuda:{count - 1}"
        raise ValueError(f"{', '.join(missing)} does not exist; this machine has {there}")
    return names


def parse_visible(text: str) -> tuple[str, ...]:
    """The GPUs of CUDA_VISIBLE_DEVICES, by number or UUID. CUDA ignores what follows an invalid
    entry, and shows no GPU if one is repeated."""
    entries = (part.strip() for part in text.split(","))
    names = [*takewhile(lambda entry: re.fullmatch(r"[0-9]+|(GPU|MIG)-.+", entry), entries)]
    return tuple(names) if len(set(names)) == len(names) else ()


def choose_gpus(text: str, visible: Sequence[str]) -> tuple[str, ...]:
    """The GPUs that ``--gpus`` names: ``all``, or positions in ``visible``.

    Args:
        visible: the GPUs that this process may use.

    Raises:
        UserError: a named GPU does not exist, or ``text`` is neither.
    """
    every = [str(position) for position in range(len(visible))]
    names = every if text == "all" else [part.strip() for part in text.split(",")]
    if not all(name.isdecimal() for name in names) or len(set(map(int, names))) < len(names):
        raise UserError(f"--gpus {text}: give `all`, or different numbers such as 0,1")
    if not visible:
        raise UserError(f"--gpus {text}: no GPU is visible; give the container its GPUs")
    missing = ", ".join(name for name in names if int(name) >= len(visible))
    if missing:
        there = f"give numbers from 0 to {every[-1]}" if every[1:] else "the only one is 0"
        raise UserError(f"--gpus {text}: there is no GPU {missing}; {there}")
    return tuple(visible[int(name)] for name in names)


def max_jobs_for_memory(memory: int) -> int:
    """Slots on a GPU of ``memory`` bytes, for Stable Diffusion 1.5 at 512 px, one image per step.

    Based on measurements by ``benchmarks.gpu``. Larger batches and images take more; their passes
    are then split.
    """
    return max(1, min(MAX_JOBS, int((memory - _FIXED) / _OF_STYLE)))
