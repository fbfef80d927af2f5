"""Draw the demo's images: `python -m assets.demo_images FOLDER`."""

from __future__ import annotations

import argparse
from pathlib import Path

from assets.drawing import draw_style_set


def main() -> None:
    """Draw the images, each with its caption."""
    parser = argparse.ArgumentParser(description="Draw a folder of images in one style.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=12)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    draw_style_set(options.folder, options.count, options.seed)


if __name__ == "__main__":
    main()
