"""Compile every fused kernel for old and new GPUs, without a GPU, and check how it reads memory.

This needs its own process: Triton's interpreter, which tests run under, cannot compile.
"""

from __future__ import annotations

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from adapters.diffusion.fused import kernels

_NUMBERS = {"epsilon": "fp32", "inverse": "fp32"}
_SIZES = {
    *("pixels", "strips", "span", "groups", "depth", "each", "tiles", "shift_stride"),
    *("rows", "width", "numbers", "channels"),
}
_ALWAYS_FLOAT = {"partial", "stats"}
_TRAINED_IN = {75: "fp16", 90: "bf16"}
"""Compute capabilities, each with the precision that such a GPU trains in."""
_OF_ROWS = {"BLOCK": 4096, "ROWS": 2}
_OF_GROUPS = {"BLOCK": 128, "ROWS": 32, "SLOTS": 16, "ALIGN": 8, "MOST": 64}
_KERNELS = {
    kernels.moments: _OF_GROUPS,
    kernels.normalise: _OF_GROUPS,
    kernels.gradient_sums: _OF_GROUPS,
    kernels.gradient_through: _OF_GROUPS,
    kernels.layer_norm: _OF_ROWS,
    kernels.layer_norm_gradient: _OF_ROWS,
    kernels.gate: _OF_ROWS,
    kernels.gate_gradient: _OF_ROWS,
    kernels.add: _OF_ROWS,
}
_WIDE = "ld.global.v4.b32"
"""A read of sixteen bytes, which are eight values of a group norm."""


def main() -> None:
    """Compile, and print how many binaries resulted."""
    done = 0
    for capability, precision in _TRAINED_IN.items():
        for kernel, values in _KERNELS.items():
            for on in (False, True):
                code = _compiled(kernel, values, capability, precision, on)
                assert values is _OF_ROWS or _WIDE in code, f"{kernel.__name__} reads little"
                done += 1
    print(done)


def _compiled(
    kernel: triton.JITFunction, values: dict[str, int], capability: int, precision: str, on: bool
) -> str:
    """The compiled kernel as assembly text."""
    signature, constants, known = {}, {}, {}
    for at, name in enumerate(kernel.arg_names):
        if name.isupper():
            signature[name] = "constexpr"
            constants[(at,)] = values.get(name, on)
        elif name in _NUMBERS or name in _SIZES:
            signature[name] = _NUMBERS.get(name, "i32")
        else:
            signature[name] = "*fp32" if name in _ALWAYS_FLOAT else f"*{precision}"
            known[(at,)] = [["tt.divisibility", 16]]  # torch's memory is aligned so
    source = ASTSource(kernel, signature, constants, known)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32))
    assert compiled.asm["cubin"]
    return str(compiled.asm["ptx"])


if __name__ == "__main__":
    main()
