"""The contract of every image inspector."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO

import pytest
from PIL import Image

from adapters.images.isolated import IsolatedInspector
from adapters.memory import MemoryInspector
from application.ports import ImageInspector
from application.stop_signal import Stopped, StopReason, StopSignal
from domain.image import MIN_SIDE_PIXELS, ImageFacts, ImageRejected


@dataclass(frozen=True)
class Harness:
    """An inspector, two different images, and a file that is not an image."""

    inspector: ImageInspector
    images: tuple[bytes, bytes]
    broken: bytes = b"broken"


@pytest.fixture(params=["memory", "isolated"])
def harness(request: pytest.FixtureRequest) -> Harness:
    if request.param == "memory":
        return Harness(MemoryInspector(), (b"one", b"two"))
    sloped = Image.linear_gradient("L")
    return Harness(IsolatedInspector(), (_png(sloped), _png(sloped.rotate(90))))


def _png(image: Image.Image) -> bytes:
    file = BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def inspect(harness: Harness, data: bytes) -> ImageFacts:
    return harness.inspector.inspect(data, 512, StopSignal()).facts


def test_image_facts_are_plausible(harness: Harness) -> None:
    for data in harness.images:
        facts = inspect(harness, data)
        assert min(facts.width, facts.height) >= MIN_SIDE_PIXELS
        assert len(bytes.fromhex(facts.sha256)) == 32
        assert 0 <= facts.perceptual_hash < 2**64


def test_equal_files_have_equal_facts_and_others_do_not(harness: Harness) -> None:
    first, second = (inspect(harness, data) for data in harness.images)
    assert inspect(harness, harness.images[0]) == first
    assert first.sha256 != second.sha256
    assert first.perceptual_hash != second.perceptual_hash


def test_invalid_images_are_rejected_with_a_reason(harness: Harness) -> None:
    with pytest.raises(ImageRejected, match=r"^.+$"):
        inspect(harness, harness.broken)


def test_threads_may_share_an_inspector(harness: Harness) -> None:
    alone = [inspect(harness, data) for data in harness.images]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda data: inspect(harness, data), harness.images * 8))
    assert together == alone * 8


def test_a_stop_interrupts_the_inspection(harness: Harness) -> None:
    stop = StopSignal()
    stop.request(StopReason.SHUTDOWN)
    with pytest.raises(Stopped):
        harness.inspector.inspect(harness.images[0], 512, stop)
