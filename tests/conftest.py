"""Environment variables that must be set before any test file is imported."""

from __future__ import annotations

import os
from pathlib import Path

# Models this small are slower with several threads, and if several processes share the
# processor, threads that busy-wait for each other take most of its time.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Without a GPU, Triton's interpreter runs the kernels. Triton reads the variable on import, and
# diffusers imports it; torch could detect a GPU more reliably, but takes seconds to import.
if not Path("/dev/nvidiactl").exists():
    os.environ["TRITON_INTERPRET"] = "1"
