"""A CPU substitute for CUDA graphs: record calls once, then repeat them.

A replay runs no Python code of the step. Anything that the step computes there (a number passed
to a call, a choice, new memory) keeps its recorded value, and so shows in the result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from threading import get_ident
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

READS_BACK = {
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.equal.default,
    torch.ops.aten.nonzero.default,
}
"""Calls that wait for the device, which a graph cannot contain."""


@dataclass(frozen=True)
class Call:
    """One recorded call and the memory it uses."""

    function: Callable[..., Any]
    arguments: Sequence[Any]
    keywords: Mapping[str, Any]
    made: Sequence[torch.Tensor]
    """Results that are not views of the arguments."""

    def again(self) -> None:
        """Repeat the call, and copy its results to where they were the first time."""
        given = self.function(*self.arguments, **self.keywords)
        known = _places([self.arguments, self.keywords])
        for old, new in zip(self.made, _made(given, known), strict=True):
            old.copy_(new)


class Recording(TorchDispatchMode):
    """Records all calls in the with-block; on leaving, restores the memory that they wrote to."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self._own: set[int] = set()
        self._before: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}

    def __torch_dispatch__(
        self, function: Any, _: Any, arguments: Any = (), keywords: Any = None
    ) -> Any:
        keywords = keywords or {}
        if function.namespace == "profiler":
            return function(*arguments, **keywords)
        if function in READS_BACK:
            raise RuntimeError("operation not permitted when stream is capturing")
        for tensor in _written(function, arguments, keywords):
            self._keep(tensor.untyped_storage())
        given = function(*arguments, **keywords)
        made = _made(given, _places([arguments, keywords]))
        self._own.update(tensor.untyped_storage().data_ptr() for tensor in made)
        self.calls.append(Call(function, arguments, keywords, made))
        return given

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for storage, before in self._before.values():
            storage.copy_(before)

    def _keep(self, storage: torch.UntypedStorage) -> None:
        place = storage.data_ptr()
        if place not in self._own and place not in self._before:
            self._before[place] = storage, storage.clone()


class FakeGraphRecorder:
    """Port ``cuda_graphs.Recorder`` on a CPU."""

    def __init__(self, _device: torch.device | None = None) -> None:
        self.recorded = self.replayed = self.waited = 0
        self.threads: set[int] = set()
        """Threads that used the recorder."""

    def warming_up(self) -> AbstractContextManager[None]:
        self.threads.add(get_ident())
        return nullcontext()

    def synchronize(self) -> None:
        self.waited += 1

    def record(self, function: Callable[[], None]) -> Callable[[], None]:
        self.recorded += 1
        self.threads.add(get_ident())
        with Recording() as recording:
            function()

        @torch.no_grad()
        def replay() -> None:
            self.replayed += 1
            self.threads.add(get_ident())
            for call in recording.calls:
                call.again()

        return replay


def _tensors(values: Any) -> Iterable[torch.Tensor]:
    return (leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor))


def _places(values: Any) -> set[int]:
    return {tensor.untyped_storage().data_ptr() for tensor in _tensors(values)}


def _made(given: Any, known: set[int]) -> list[torch.Tensor]:
    return [
        tensor for tensor in _tensors(given) if tensor.untyped_storage().data_ptr() not in known
    ]


def _written(function: Any, arguments: Any, keywords: Any) -> Iterable[torch.Tensor]:
    """The arguments that the call writes to, by its schema."""
    for index, argument in enumerate(function._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = arguments[index] if index < len(arguments) else keywords.get(argument.name)
            yield from _tensors(value)
