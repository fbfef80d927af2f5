"""What a style's file must be, byte for byte: that of a run that nobody disturbs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.faults.estate import FIRST_STYLE, IMAGES, MODELS, ROOT, SEEDS, Estate, task_body

IDS = {seed: f"00000000-0000-4000-8000-{seed:012d}" for seed in SEEDS}


def references(estate: Estate, folder: Path) -> dict[int, bytes]:
    """The file of each variant, trained by the worker on its embedded adapters."""
    spool, buckets = folder / "spool", folder / "buckets"
    spool.mkdir(parents=True)
    shutil.copytree(folder.parent / "pictures", buckets / IMAGES)
    settings = {
        "SPOOL_DIR": str(spool),
        "STORAGE_DIR": str(buckets),
        "AWS_STORAGE_BUCKET_NAME": IMAGES,
        "MODEL_BUCKET_NAME": MODELS,
        "BASE_MODEL": estate.settings()["BASE_MODEL"],
        "DEVICE": "cpu",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }
    for number, seed in enumerate(SEEDS):
        body = task_body(IDS[seed], FIRST_STYLE + number, seed, estate.images)
        (spool / f"{seed}.json").write_bytes(body)
    done = subprocess.run(
        [sys.executable, "-m", "entrypoints.worker", "--once"],
        cwd=folder,
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        check=False,
    )
    files = {
        seed: buckets / MODELS / "models" / f"style_{FIRST_STYLE + number}.safetensors"
        for number, seed in enumerate(SEEDS)
    }
    if not all(file.exists() for file in files.values()):
        raise RuntimeError(f"the undisturbed run made no style:\n{done.stderr}")
    return {
        seed: files[seed]
        .read_bytes()
        .replace(f"style_{FIRST_STYLE + number}".encode(), b"style_%d")
        for number, seed in enumerate(SEEDS)
    }


def expected(references: dict[int, bytes], seed: int, style_id: int) -> bytes:
    """The file of this style: its own name in place of the reference's."""
    return references[seed].replace(b"style_%d", f"style_{style_id}".encode())
