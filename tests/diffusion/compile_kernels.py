"""Compile every fused kernel for old and new cards, which takes no card.

A process of its own: Triton's interpreter, under which tests run, cannot compile.
"""

from __future__ import annotations

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from adapters.diffusion.fused import kernels

_NUMBERS = {"epsilon": "fp32", "inverse": "fp32"}
_SIZES = {
    *("pixels", "channels", "groups", "depth", "rows", "shift_stride"),
    *("width", "numbers"),
}
_ALWAYS_FLOAT = {"partial", "stats"}
_TRAINED_IN = {75: "fp16", 90: "bf16"}
"""Compute capabilities, each with the precision that such a card trains in."""
_VALUES = {"BLOCK": 4096, "MOST": 256, "ROWS": 2}
_KERNELS = (
    kernels.moments,
    kernels.normalise,
    kernels.gradient_sums,
    kernels.gradient_through,
    kernels.layer_norm,
    kernels.layer_norm_gradient,
    kernels.gate,
    kernels.gate_gradient,
    kernels.add,
)


def main() -> None:
    """Compile, and say how many machine codes came of it."""
    done = 0
    for capability, precision in _TRAINED_IN.items():
        for kernel in _KERNELS:
            for on in (False, True):
                _compile(kernel, capability, precision, on)
                done += 1
    print(done)


def _compile(kernel: triton.JITFunction, capability: int, precision: str, on: bool) -> None:
    signature, constants = {}, {}
    for name in kernel.arg_names:
        if name.isupper():
            signature[name] = "constexpr"
            constants[(kernel.arg_names.index(name),)] = _VALUES.get(name, on)
        elif name in _NUMBERS or name in _SIZES:
            signature[name] = _NUMBERS.get(name, "i32")
        else:
            signature[name] = "*fp32" if name in _ALWAYS_FLOAT else f"*{precision}"
    source = ASTSource(kernel, signature, constants)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32))
    assert compiled.asm["cubin"]


if __name__ == "__main__":
    main()
