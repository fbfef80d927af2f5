"""Memory needed to check hostile images: `python -m benchmarks.image_memory`.

Fetches files of a few hundred kilobytes, whose decoding needs the maximum memory allowed, from a
folder and checks them as a worker does. Prints the peak memory of this process with its children.
"""

from __future__ import annotations

import argparse
import json
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from pathlib import Path

import psutil
from PIL import Image

from adapters.filesystem import FileBlobStore
from adapters.images.isolated import IsolatedInspector
from application.fetch_images import fetch_images
from application.stop_signal import StopSignal
from application.worker_config import WorkerConfig
from domain.location import Location


def main() -> None:
    """Measure and print the results."""
    parser = argparse.ArgumentParser(description="Measure the memory for checking images.")
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--make", type=Path, help="only write the files, into this folder")
    options = parser.parse_args()
    if options.make:
        _write_files(options.make)
        return
    with tempfile.TemporaryDirectory() as folder:
        # In a separate process, so that its memory is not measured.
        subprocess.run([sys.executable, "-m", __spec__.name, "--make", folder], check=True)
        kinds = sorted(Path(folder).iterdir())
        images = []
        for n in range(options.images):
            path = kinds[n % len(kinds)]
            name = f"{n:03}{path.suffix}"
            (Path(folder) / name).hardlink_to(path)
            images.append(Location("images", name))
        print(json.dumps(_measured(Path(folder), tuple(images)), indent=2))


def _measured(folder: Path, images: tuple[Location, ...]) -> dict[str, object]:
    watch = _Watch()
    started = time.monotonic()
    with watch:
        fetched = fetch_images(
            images,
            512,
            FileBlobStore({"images": folder}, read_only=("images",)),
            IsolatedInspector(),
            WorkerConfig(),
            StopSignal(),
            quiet=True,
        )
    return {
        "images": len(images),
        "usable": len(fetched.usable),
        "rejected": sorted({rejected.reason for rejected in fetched.rejected}),
        "seconds": round(time.monotonic() - started, 1),
        "peak_gigabytes": round(watch.peak / 1e9, 2),
    }


def _write_files(folder: Path) -> None:
    """Write small files with the maximum number of pixels of each format."""
    _rgba_png(folder / "rgba.png", 10_000)
    _dotted(9_900).save(folder / "progressive.jpg", progressive=True, subsampling=0, quality=30)
    _dotted(7_800).save(folder / "lossless.webp", lossless=True, method=0)


def _dotted(side: int) -> Image.Image:
    return (
        Image.effect_noise((side // 300, side // 300), 60)
        .resize((side, side), Image.Resampling.NEAREST)
        .convert("RGB")
    )


def _rgba_png(path: Path, side: int) -> None:
    row = b"\0" + bytes((n // 40) % 256 for n in range(4 * side))
    packer = zlib.compressobj(6)
    pixels = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 8, 6, 0, 0, 0)
    with path.open("wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        for name, body in ((b"IHDR", header), (b"IDAT", pixels), (b"IEND", b"")):
            file.write(struct.pack(">I", len(body)) + name + body)
            file.write(struct.pack(">I", zlib.crc32(name + body)))


class _Watch:
    """Peak memory of this process with its children during the with-block."""

    peak = 0

    def __enter__(self) -> _Watch:
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        me = psutil.Process()
        while not self._done.wait(0.02):
            together = 0
            for process in (me, *me.children()):
                try:
                    together += process.memory_info().rss
                except psutil.Error:
                    continue
            self.peak = max(self.peak, together)


if __name__ == "__main__":
    main()
