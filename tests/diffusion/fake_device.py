"""A simulated GPU that computes nothing, but shows how a program uses it.

It is torch's ``meta`` device, whose tensors have a shape and no values. It detects errors that
occur only with a GPU: a call that combines the GPU's tensors with those of the host or of another
GPU, and a call that makes the host wait.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from adapters.diffusion.base.model import BaseModel

aten = torch.ops.aten
FAKE_DEVICE = torch.device("meta")


class FakeDevice(TorchDispatchMode):
    """In the with-block and this thread, numbers read from the GPU are 0.

    Raises:
        AssertionError: from calls with tensors on two devices, unless they copy.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waited: list[str] = []
        """Calls that made the host wait for a number or a copy."""
        self.takes_single_numbers = False
        """Accept single numbers from the host, which torch passes by value; not another GPU's."""

    def __torch_dispatch__(
        self, function: Any, _: Any, arguments: Any = (), keywords: Any = None
    ) -> Any:
        keywords = keywords or {}
        given = [
            leaf for leaf in tree_leaves([arguments, keywords]) if isinstance(leaf, torch.Tensor)
        ]
        if function is aten._to_copy.default:
            return self._copy(*arguments, **keywords)
        if function is aten.copy_.default:
            return self._copy_into(*arguments, **keywords)
        counted = [tensor for tensor in given if tensor.ndim or not self.takes_single_numbers]
        devices = {tensor.device for tensor in counted}
        assert len(devices) < 2, f"{function} was called with tensors on {devices}"
        if all(tensor.device != FAKE_DEVICE for tensor in given):
            return function(*arguments, **keywords)
        if function is aten._local_scalar_dense.default:
            self.waited.append(str(function))
            return 0
        if function is aten.nonzero.default:
            self.waited.append(str(function))
            return torch.zeros(1, arguments[0].ndim, dtype=torch.int64, device=FAKE_DEVICE)
        if function.overloadpacket is aten._fused_adamw_:
            return None  # it returns nothing, but torch cannot infer that
        return function(*arguments, **keywords)

    def _copy(self, source: torch.Tensor, **keywords: Any) -> torch.Tensor:
        to = torch.device(keywords.get("device") or source.device)
        self._note_copy(source.device, to, keywords.get("non_blocking"))
        if source.device == FAKE_DEVICE != to:
            return torch.zeros(source.shape, dtype=keywords.get("dtype") or source.dtype)
        return aten._to_copy.default(source, **keywords)

    def _copy_into(
        self, to: torch.Tensor, source: torch.Tensor, non_blocking: bool = False
    ) -> torch.Tensor:
        self._note_copy(source.device, to.device, non_blocking)
        if source.device == FAKE_DEVICE != to.device:
            return to.zero_()
        return aten.copy_.default(to, source, non_blocking)

    def _note_copy(
        self, source: torch.device, to: torch.device, non_blocking: bool | None
    ) -> None:
        if source != to and not non_blocking:
            self.waited.append(f"copy from {source} to {to}")


def move_to_fake_device(base: BaseModel) -> None:
    """Move the whole base: with torch a tensor cannot move to this GPU and come back."""
    for part in (base.unet, base.vae, base.text_encoder):
        torch.nn.Module.to(part, device=FAKE_DEVICE)


def let_adamw_be_fused_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Enable fused AdamW, as on a real GPU."""
    # By module name, because torch.optim has a function of this name, too.
    module = sys.modules["torch.optim.optimizer"]
    name = "_get_fused_kernels_supported_devices"
    supported: Callable[[], list[str]] = getattr(module, name)
    monkeypatch.setattr(module, name, lambda: [*supported(), FAKE_DEVICE.type])
