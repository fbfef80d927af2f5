"""Images that exhaust memory or time, or crash the decoder, affect no other image."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import psutil
import pytest
from PIL import Image

from adapters.images.isolated import IsolatedInspector
from application.stop_signal import Stopped, StopReason, StopSignal
from domain.image import ImageRejected
from tests.adapters.images.files import (
    animated_webp,
    chunk,
    encode,
    jpeg_of_scans,
    png,
    rgba_bomb,
    scene,
)

RESOLUTION = 256
SLOW = 9000
"""Side in pixels of an image that takes seconds to decode."""
SCENE = encode(scene(), "PNG")


@pytest.fixture(scope="module")
def inspector() -> IsolatedInspector:
    return IsolatedInspector(processes=2)


def reason(inspector: IsolatedInspector, data: bytes) -> str:
    with pytest.raises(ImageRejected) as caught:
        inspector.inspect(data, RESOLUTION, StopSignal())
    return str(caught.value)


def children() -> set[int]:
    """Decoder processes. Between fork and exec, a child has its parent's memory and name."""
    found = set()
    for child in psutil.Process().children():
        with suppress(psutil.Error):
            if "adapters.images.child" in " ".join(child.cmdline()):
                found.add(child.pid)
    return found


def test_a_palette_image_without_palette_is_rejected(inspector: IsolatedInspector) -> None:
    data = png((300, 300, 8, 3, 0, 0, 0), chunk(b"IDAT", b"x\x9c\x03\x00\x00\x00\x00\x01"))
    assert "damaged" in reason(inspector, data)


def test_a_jpeg_of_very_many_scans_is_rejected_by_name(inspector: IsolatedInspector) -> None:
    assert "3,000 scans" in reason(inspector, jpeg_of_scans(3000))
    inspector.inspect(jpeg_of_scans(100), RESOLUTION, StopSignal())


def test_only_the_first_of_very_many_frames_is_decoded(inspector: IsolatedInspector) -> None:
    prepared = inspector.inspect(animated_webp(10_000), RESOLUTION, StopSignal())
    assert prepared.facts.notes == ("it is animated; its first frame is used",)
    assert prepared.facts.sha256 == inspector.inspect(SCENE, RESOLUTION, StopSignal()).facts.sha256


def test_a_large_image_takes_no_more_memory_than_was_reserved() -> None:
    inspector = IsolatedInspector(processes=1)
    before, peak, done = children(), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.01):
            for pid in children() - before:
                try:
                    peak = max(peak, psutil.Process(pid).memory_info().rss)
                except psutil.Error:
                    continue

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        assert "it is all white" in reason(inspector, rgba_bomb(6000))
    finally:
        done.set()
        watcher.join()
    decoded = 4 * 6000 * 6000
    assert decoded < peak < decoded + 150e6


def test_a_crashing_decoder_fails_one_image_only(inspector: IsolatedInspector) -> None:
    data = rgba_bomb(6000)
    before = children()
    with ThreadPoolExecutor(1) as pool:
        rejected = pool.submit(reason, IsolatedInspector(processes=1), data)
        while not rejected.done():
            for pid in children() - before:
                process = psutil.Process(pid)
                if process.memory_info().rss > 80e6:  # it is at work on the image
                    process.kill()
            time.sleep(0.05)
    assert "the decoder crashed" in rejected.result()
    inspector.inspect(SCENE, RESOLUTION, StopSignal())


def test_a_process_decodes_one_image_after_the_other() -> None:
    """Starting a process costs more than decoding an ordinary image."""
    inspector, before = IsolatedInspector(processes=1), children()
    inspector.inspect(SCENE, RESOLUTION, StopSignal())
    started = children() - before
    inspector.inspect(SCENE, RESOLUTION, StopSignal())
    assert children() - before == started
    assert len(started) == 1


def test_an_image_that_takes_too_long_is_rejected() -> None:
    inspector = IsolatedInspector(processes=1, seconds=0.2)
    assert "takes too long" in reason(inspector, rgba_bomb(6000))


@pytest.mark.parametrize("phase", ["decoding", "waiting for a process", "waiting for memory"])
def test_a_stop_takes_effect_within_two_seconds(phase: str) -> None:
    slow = rgba_bomb(SLOW)
    inspector = IsolatedInspector(processes=1 if phase == "waiting for a process" else 2)
    if phase == "waiting for memory":
        inspector = IsolatedInspector(processes=2, memory=4 * SLOW * SLOW)
    stop, busy = StopSignal(), StopSignal()
    with ThreadPoolExecutor(2) as pool:
        other = pool.submit(inspector.inspect, slow, RESOLUTION, busy) if "for" in phase else None
        time.sleep(0.7)
        inspection = pool.submit(inspector.inspect, slow, RESOLUTION, stop)
        time.sleep(0.7)
        stop.request(StopReason.CANCELLED)
        before = time.monotonic()
        with pytest.raises(Stopped):
            inspection.result()
        assert time.monotonic() - before < 2
        busy.request(StopReason.CANCELLED)
        if other is not None:
            with suppress(Stopped):
                other.result()


def test_no_process_remains_after_a_stop() -> None:
    before, inspector, stop = children(), IsolatedInspector(processes=1), StopSignal()
    with ThreadPoolExecutor(1) as pool:
        inspection = pool.submit(inspector.inspect, rgba_bomb(SLOW), RESOLUTION, stop)
        while children() <= before:
            time.sleep(0.05)
        stop.request(StopReason.SHUTDOWN)
        with pytest.raises(Stopped):
            inspection.result()
    assert children() <= before


def test_images_of_one_colour_or_invisible_are_rejected(
    inspector: IsolatedInspector,
) -> None:
    blank = encode(Image.new("RGB", (300, 300), "teal"), "PNG")
    assert reason(inspector, blank) == "it has one colour throughout"
    ink = Image.new("RGBA", (300, 300), (255, 255, 255, 0))
    for image in (ink, ink.copy()):
        assert "it is all white" in reason(inspector, encode(image, "PNG"))
        ink.paste((255, 255, 255, 255), (50, 50, 200, 200))
