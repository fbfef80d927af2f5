"""Classification of torch errors: lost device, out of memory, or a defect."""

from __future__ import annotations

import pytest
import torch

from adapters.common.device_errors import is_broken_device
from adapters.common.device_memory import is_out_of_memory

AcceleratorError: type[RuntimeError] = getattr(torch, "AcceleratorError", RuntimeError)
ILLEGAL = "CUDA error: an illegal memory access was encountered"
DETAILS = "\nCUDA kernel errors might be asynchronously reported at some other API call."


@pytest.mark.parametrize(
    "error",
    [
        AcceleratorError(ILLEGAL + DETAILS),
        RuntimeError(ILLEGAL + DETAILS),
        RuntimeError("CUDA error: device-side assert triggered"),
        RuntimeError("CUDA error: uncorrectable ECC error encountered"),
        RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx"),
        RuntimeError("Triton Error [CUDA]: unspecified launch failure"),
    ],
)
def test_lost_device_errors_are_recognised(error: Exception) -> None:
    assert is_broken_device(error)
    assert not is_out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        AcceleratorError("CUDA error: out of memory" + DETAILS),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate"),
        RuntimeError("Triton Error [CUDA]: out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"),
    ],
)
def test_out_of_memory_errors_are_recognised(error: Exception) -> None:
    assert is_out_of_memory(error)
    assert not is_broken_device(error)


@pytest.mark.parametrize(
    "error", [RuntimeError("shapes cannot be multiplied"), ValueError(ILLEGAL), MemoryError()]
)
def test_other_errors_are_defects(error: Exception) -> None:
    assert not is_out_of_memory(error)
    assert not is_broken_device(error)
