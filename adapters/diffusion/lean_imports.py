"""Import diffusers and transformers without the parts that training does not use.

On the way to the first step they import torch's compiler (``torch._dynamo``, with sympy), its
sharded tensors, PEFT and all models of the libraries. Only ``torch.compile``, sharded models and
PEFT's layers need them. `python -m benchmarks.first_step` prints the time until that step.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, TypeVar

from domain.errors import UserError

T = TypeVar("T")

log = logging.getLogger(__name__)

_MASK_HELPER = "torch._dynamo._trace_wrapped_higher_order_op"
_LOCK = threading.RLock()
"""Held while modules are left out, because all threads share them."""


def lean(call: Callable[[], T]) -> T:
    """Call a function that imports or loads; its imports leave out what training does not use.

    What is left out can still be imported afterwards. With library versions that need it, the
    function is called again, with complete imports. Meanwhile other threads must not use torch,
    diffusers or transformers: they would meet the stand-ins.
    """
    try:
        with _LOCK, _left_out():
            return call()
    except Exception as error:  # the libraries wrap errors of imports in their own types
        if isinstance(error, UserError) and error.__cause__ is None:
            raise  # found by a check of this project, which no import changes
        log.debug("complete imports, because of %r", error)
    return call()


@contextmanager
def _left_out() -> Iterator[None]:
    import torch.distributed

    modules = {name: module for name, module in _stand_ins().items() if name not in sys.modules}
    sys.modules.update(modules)  # type: ignore[arg-type] # None: the import fails
    # As in a build of torch without it. Else transformers imports torch's sharded tensors.
    is_available, torch.distributed.is_available = torch.distributed.is_available, lambda: False
    # diffusers reads the files of all installed packages, for the versions of a few optional ones.
    read_packages, metadata.packages_distributions = metadata.packages_distributions, dict
    try:
        yield
    finally:
        torch.distributed.is_available = is_available
        metadata.packages_distributions = read_packages
        for name, module in modules.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]


def _stand_ins() -> dict[str, ModuleType | None]:
    """Stand-ins by name of the module; None makes it appear not installed."""
    compiler: Any = ModuleType("torch._dynamo")
    compiler.__path__ = []
    compiler.allow_in_graph = compiler.assume_constant_result = lambda function: function
    compiler.disable = _undecorated
    compiler.eval_frame = SimpleNamespace(OptimizedModule=type("OptimizedModule", (), {}))
    masks: Any = ModuleType(_MASK_HELPER)
    # Imports the compiler at the first call: only few models of transformers mask with it.
    masks.TransformGetItemToIndex = lambda: import_module(_MASK_HELPER).TransformGetItemToIndex()
    sagemaker: Any = ModuleType("accelerate.commands.config.sagemaker")  # it imports boto3
    sagemaker.get_sagemaker_input = None
    # These packages' own ``__init__`` reads or imports all models of the library.
    packages = [
        _without_init(name)
        for name in (
            "transformers.models",
            "diffusers.models.autoencoders",
            "diffusers.models.transformers",
            "diffusers.models.unets",
        )
    ]
    stand_ins = (compiler, masks, sagemaker, *packages)
    return {stand_in.__name__: stand_in for stand_in in stand_ins} | {"peft": None}


def _without_init(name: str) -> ModuleType:
    """The package, from which modules can be imported."""
    library, *inside = name.split(".")
    spec = find_spec(library)
    assert spec is not None
    package = ModuleType(name)
    package.__path__ = [
        str(Path(folder, *inside)) for folder in spec.submodule_search_locations or ()
    ]
    return package


def _undecorated(function: Any = None, *_arguments: Any, **_options: Any) -> Any:
    """Decorates as ``torch._dynamo.disable`` does, with or without arguments."""
    return _undecorated if function is None else function
