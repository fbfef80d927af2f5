"""What has to be settled before any test file is imported."""

from __future__ import annotations

import os
import shutil

# Where there is no GPU, Triton's interpreter runs the kernels. Triton looks when it is imported,
# and diffusers imports it.
if shutil.which("nvidia-smi") is None:
    os.environ["TRITON_INTERPRET"] = "1"
