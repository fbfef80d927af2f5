"""What has to be settled before any test file is imported."""

from __future__ import annotations

import os
from pathlib import Path

# Where there is no GPU, Triton's interpreter runs the kernels. Triton looks when it is imported,
# and diffusers imports it; torch would know better, but takes seconds to ask.
if not Path("/dev/nvidiactl").exists():
    os.environ["TRITON_INTERPRET"] = "1"
