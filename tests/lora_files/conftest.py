"""The trainer's fixtures, for tests of LoRA files that a run writes."""

from tests.diffusion.conftest import base, images, small_base_folder, trainer

__all__ = ["base", "images", "small_base_folder", "trainer"]
