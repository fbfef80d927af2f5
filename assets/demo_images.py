"""Draw the demo's images: `python -m assets.demo_images FOLDER`."""

from __future__ import annotations

import argparse
from pathlib import Path

from assets.drawing import draw_style_set


def main() -> None:
    """Draw the images; every second one gets a caption, the others need one."""
    parser = argparse.ArgumentParser(description="Draw a folder of images in one style.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=12)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    images = draw_style_set(options.folder, options.count, options.seed)
    for image in images[1::2]:
        image.with_suffix(".txt").unlink()


if __name__ == "__main__":
    main()
