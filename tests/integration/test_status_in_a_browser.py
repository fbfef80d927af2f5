"""The status page in headless Chromium: what a person sees and can do."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from adapters.status_page.app import build_app
from adapters.status_page.server import StatusServer
from tests.services import status_scenes
from tests.services.missing import skip_or_fail
from tests.services.status_scenes import SECRET, Scene
from tests.services.waiting import eventually

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.integration

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
TOKEN = "correct-horse-battery-staple"
SCENES = {
    "idle": status_scenes.idle,
    "training": status_scenes.training,
    "side by side": status_scenes.side_by_side,
    "failed": status_scenes.failed,
}
SIZES = {"desktop": (1280, 900), "phone": (360, 740)}
LOOKS = [(scene, *look) for scene in SCENES for look in (("light", "desktop"), ("dark", "phone"))]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        skip_or_fail("waits for Chromium: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


class Visit:
    """A page of a scene, and the browser's errors."""

    def __init__(self, browser: Browser, url: str, scheme: str, size: str) -> None:
        width, height = SIZES[size]
        self.context = browser.new_context(
            color_scheme="dark" if scheme == "dark" else "light",
            viewport={"width": width, "height": height},
            locale="en-GB",
            timezone_id="UTC",
        )
        self.url = url
        self.problems: list[str] = []
        self.requests: list[str] = []
        self.page: Page = self.context.new_page()
        self.page.on("console", lambda message: self._record_problem(message.type, message.text))
        self.page.on("pageerror", lambda error: self._record_problem("error", str(error)))
        self.page.on(
            "dialog", lambda dialog: self._record_problem("error", f"dialog: {dialog.message}")
        )
        self.page.on("request", lambda request: self.requests.append(request.url))

    def _record_problem(self, kind: str, text: str) -> None:
        if kind in ("error", "warning"):
            self.problems.append(text)

    def open(self) -> Page:
        self.page.goto(self.url)
        self.page.locator("#checks li").first.wait_for()
        return self.page


Look = Callable[..., Visit]


@pytest.fixture
def look(browser: Browser) -> Iterator[Look]:
    opened: list[Any] = []

    def visit(
        scene: Scene, scheme: str = "light", size: str = "desktop", token: str | None = None
    ) -> Visit:
        app = build_app(scene.sources(), host="127.0.0.1", token=token)
        server = StatusServer(app, "127.0.0.1", 0)
        found = Visit(browser, server.start(), scheme, size)
        opened.append((found, server))
        return found

    yield visit
    for found, server in opened:
        found.context.close()
        server.stop()


@pytest.mark.parametrize(("scene", "scheme", "size"), LOOKS)
def test_the_page_has_no_errors_in_every_theme(
    scene: str, scheme: str, size: str, look: Look
) -> None:
    from axe_playwright_python.sync_playwright import Axe

    visit = look(SCENES[scene](), scheme, size)
    page = visit.open()
    page.locator("summary").click()

    assert visit.problems == []
    assert all(request.startswith(visit.url) for request in visit.requests), visit.requests
    width = page.evaluate("() => document.documentElement.scrollWidth")
    assert width <= SIZES[size][0], "scrolls to the side"
    rules = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]}
    found = Axe().run(page, options=rules).response
    problems = [
        (violation["id"], [node["target"] for node in violation["nodes"]])
        for violation in found["violations"]
    ]
    assert problems == []
    assert any(passed["id"] == "color-contrast" for passed in found["passes"])


def test_job_progress_is_shown_without_reloading(look: Look) -> None:
    scene = status_scenes.training()
    page = look(scene).open()
    bar = page.get_by_role("progressbar")
    assert bar.get_attribute("aria-valuenow") == "63"
    assert "epoch 127 of 200, about 7 min 18 s left" in (bar.get_attribute("aria-valuetext") or "")
    assert page.title() == "63 % style 42 · atelier-1"
    assert page.locator("#state-text").inner_text() == "Training"
    assert page.locator("#phases li[aria-current=step]").inner_text().startswith("Training")

    scene.train(42, first=128, until=150)
    page.get_by_text("150 / 200", exact=True).wait_for()
    assert bar.get_attribute("aria-valuenow") == "75"
    scene.train(42, first=151, until=200)
    scene.complete(42)
    page.get_by_role("heading", name="Last job: style 42").wait_for()
    assert page.locator("#recent li").first.inner_text().startswith("completed")
    assert page.get_by_role("status").text_content() == "Style 42: completed"
    page.get_by_text("of style 42, epoch 200", exact=True).wait_for()


def test_the_loss_curve_is_drawn_from_the_numbers(look: Look) -> None:
    page = look(status_scenes.training()).open()
    plot = page.locator("#plot")
    label = plot.get_attribute("aria-label") or ""
    assert "in epoch 127 of 200" in label
    path = plot.locator("path.raw").get_attribute("d") or ""
    assert path.count("L") == 126
    box = plot.bounding_box()
    assert box is not None
    # Half way along 200 epochs is epoch 100.
    middle = box["x"] + 48 + (box["width"] - 58) * 99 / 199
    page.mouse.move(middle, box["y"] + 50)
    assert page.locator("#curve-readout").inner_text().startswith("epoch 100: 0.1")
    page.mouse.move(0, 0)
    plot.focus()
    page.keyboard.press("ArrowLeft")
    assert page.locator("#curve-readout").inner_text().startswith("epoch 126: ")


def test_text_of_a_message_is_escaped(look: Look) -> None:
    visit = look(status_scenes.failed())
    page = visit.open()
    assert status_scenes.NASTY in page.locator("#job-note").inner_text()
    assert page.locator("#main img[src=x], #main script").count() == 0
    assert SECRET not in page.content()
    assert visit.problems == []


def test_a_worker_that_is_not_ready_shows_why(look: Look) -> None:
    page = look(status_scenes.failed()).open()
    assert page.locator("#state-text").inner_text() == "Not ready"
    assert page.locator("#checks li.not").count() == 2
    assert "Not ready: Queue" in (page.locator("#checks").text_content() or "")
    assert page.locator("#phases li.broke").inner_text().startswith("Training")


def test_previews_are_shown_with_their_prompts(look: Look) -> None:
    page = look(status_scenes.training()).open()
    images = page.locator("#pairs img")
    images.last.wait_for()
    assert images.count() == 6
    # There before they are loaded; one that cannot be is complete, too, and has no width. Asked
    # from here: to wait in the page would take an `eval`, which its policy forbids.
    complete = "(images) => images.every((image) => image.complete)"
    eventually(lambda: images.evaluate_all(complete), within=10)
    widths = images.evaluate_all("(images) => images.map((image) => image.naturalWidth)")
    assert widths == [256] * 6
    page.get_by_alt_text("two boats, mystyle, after training").wait_for()


def test_previews_of_the_running_job_replace_the_last_ones(look: Look) -> None:
    scene = status_scenes.training()
    page = look(scene).open()
    page.get_by_text("of style 41, epoch 200", exact=True).wait_for()
    scene.draw(42, 120, finished=False)
    page.get_by_text("of style 42, epoch 120", exact=True).wait_for()
    page.get_by_alt_text("two boats, mystyle, so far in training").wait_for()
    assert page.locator("#pairs img").count() == 3


def rows(page: Page) -> list[str]:
    """The rows of the active jobs, as shown."""
    return [" ".join(text.split()) for text in page.locator("#active-jobs tr").all_inner_texts()]


def test_several_active_jobs_are_in_a_table_and_one_of_them_in_full(look: Look) -> None:
    visit = look(status_scenes.side_by_side())
    page = visit.open()
    page.get_by_role("heading", name="Active jobs").wait_for()
    assert rows(page) == [
        "Style 42 Training 127 / 200 63 % 2.0 7 min",
        "Style 43 Training 52 / 120 43 % 2.0 7 min",
        "Style 44 Preparing" + " \N{EN DASH}" * 4,
    ]
    page.get_by_role("heading", name="Style 42", exact=True).wait_for()
    assert page.title() == "63 % style 42 and 2 more · atelier-1"
    page.get_by_text("of style 42, epoch 120", exact=True).wait_for()

    page.locator("#active-jobs tr").nth(1).get_by_text("Training").click()
    page.get_by_role("heading", name="Style 43", exact=True).wait_for()
    page.get_by_text("Resumed from the checkpoint of epoch 40.").wait_for()
    page.get_by_text("of style 43, epoch 50", exact=True).wait_for()
    assert page.get_by_role("progressbar").get_attribute("aria-valuenow") == "43"
    assert visit.problems == []


def test_a_job_is_selected_by_keyboard_and_stays_selected_while_active(look: Look) -> None:
    scene = status_scenes.side_by_side()
    page = look(scene).open()
    for _ in range(3):  # the link to the status, the pause, the first job
        page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="Style 43", exact=True).wait_for()
    focused = page.get_by_role("button", name="Style 43")
    assert focused.get_attribute("aria-pressed") == "true"
    assert page.get_by_role("button", name="Style 42").get_attribute("aria-pressed") == "false"

    scene.complete(42, previews=False)
    scene.train(43, epochs=120, first=53, until=60)
    page.locator("#facts").get_by_text("60 / 120", exact=True).wait_for()
    assert len(rows(page)) == 2
    assert page.get_by_role("status").text_content() == "Style 42: completed"
    assert focused.evaluate("(button) => button === document.activeElement")

    scene.start(45)
    page.get_by_role("button", name="Style 45").wait_for()
    page.get_by_role("heading", name="Style 43", exact=True).wait_for()
    scene.interrupt(43)
    page.get_by_role("heading", name="Style 44", exact=True).wait_for()
    scene.interrupt(45)
    page.get_by_role("heading", name="Active jobs").wait_for(state="hidden")
    page.get_by_role("heading", name="Style 44", exact=True).wait_for()


def test_one_job_needs_no_table(look: Look) -> None:
    page = look(status_scenes.training()).open()
    assert not page.get_by_role("heading", name="Active jobs").is_visible()
    assert rows(page) == []


def test_every_control_is_reachable_by_keyboard_with_visible_focus(look: Look) -> None:
    page = look(status_scenes.training()).open()
    page.keyboard.press("Tab")
    assert page.evaluate("() => document.activeElement.className") == "skip"
    reached = []
    for _ in range(12):
        page.keyboard.press("Tab")
        outline = page.evaluate(
            "() => { const style = getComputedStyle(document.activeElement);"
            " return [document.activeElement.id || document.activeElement.tagName,"
            " style.outlineStyle, parseFloat(style.outlineWidth)]; }"
        )
        if outline[0] == "BODY":
            break
        assert outline[1] == "solid", outline
        assert outline[2] >= 2, outline
        reached.append(outline[0])
    assert reached == ["pause", "plot", "SUMMARY", "A", "A", "A"]


def test_updates_can_be_paused(look: Look) -> None:
    scene = status_scenes.training()
    visit = look(scene)
    page = visit.open()
    button = page.get_by_role("button", name="Pause updates")
    button.click()
    assert button.get_attribute("aria-pressed") == "true"
    page.wait_for_timeout(200)
    before = len(visit.requests)
    page.wait_for_timeout(1500)
    assert len(visit.requests) == before
    scene.train(42, first=128, until=140)
    button.click()
    page.get_by_text("140 / 200", exact=True).wait_for()


def test_prefers_reduced_motion_is_respected(look: Look) -> None:
    page = look(status_scenes.training()).open()
    page.emulate_media(reduced_motion="reduce")
    animation = "() => getComputedStyle(document.querySelector('.dot')).animationName"
    assert page.evaluate(animation) == "none"
    page.emulate_media(reduced_motion="no-preference")
    assert page.evaluate(animation) == "breathe"


def test_an_unreachable_worker_is_shown_as_such(look: Look, browser: Browser) -> None:
    scene = status_scenes.training()
    server = StatusServer(build_app(scene.sources(), host="127.0.0.1", token=None), "127.0.0.1", 0)
    visit = Visit(browser, server.start(), "light", "desktop")
    page = visit.open()
    server.stop()
    page.get_by_text("The worker does not respond.").wait_for()
    assert page.locator("#state-text").inner_text() == "Disconnected"
    visit.context.close()


def test_a_person_signs_in_with_the_token(look: Look) -> None:
    from axe_playwright_python.sync_playwright import Axe

    visit = look(status_scenes.training(), token=TOKEN)
    page = visit.page
    page.goto(visit.url)
    assert "atelier-1" not in page.content()
    assert Axe().run(page).response["violations"] == []
    page.get_by_label("Token").fill("wrong")
    page.get_by_role("button", name="Show the status").click()
    page.get_by_role("alert").wait_for()
    page.get_by_label("Token").fill(TOKEN)
    page.get_by_role("button", name="Show the status").click()
    page.get_by_role("heading", name="atelier-1").wait_for()
    assert TOKEN not in page.url


def test_a_link_with_the_token_signs_in_and_drops_it_from_the_url(look: Look) -> None:
    visit = look(status_scenes.training(), token=TOKEN)
    visit.page.goto(f"{visit.url}/?token={TOKEN}")
    visit.page.get_by_role("heading", name="atelier-1").wait_for()
    assert visit.page.url == f"{visit.url}/"
    assert visit.problems == []


def test_a_long_name_and_a_long_message_do_not_widen_a_phone(look: Look) -> None:
    scene = status_scenes.failed("gpu-node-" + "0123456789" * 12)
    scene.queues["trouble"] = "x" * 400
    page = look(scene, size="phone").open()
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 360
