"""What has to be settled before any test file is imported."""

from __future__ import annotations

import os
from pathlib import Path

# Operations on models this small are slower when shared, and where several processes share the
# processor, threads that spin while they wait for one another take most of its time.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Where there is no GPU, Triton's interpreter runs the kernels. Triton looks when it is imported,
# and diffusers imports it; torch would know better, but takes seconds to ask.
if not Path("/dev/nvidiactl").exists():
    os.environ["TRITON_INTERPRET"] = "1"
