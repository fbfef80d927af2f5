import re
from collections.abc import Sequence
from dataclasses import fields, replace
from datetime import UTC, datetime
from functools import lru_cache
from html.parser import HTMLParser
from io import BytesIO

import pytest
from PIL import Image

from adapters.report.drawings import curves_in_words, draw_previews, plot_curves, plot_scores
from adapters.report.reporter import THUMBNAIL_PIXELS, HtmlReporter
from domain.image import ImageFacts, ImageSet, RejectedImage, TrainingImage
from domain.location import Location
from domain.loss_curve import EpochRecord
from domain.parameters import TrainingParameters
from domain.report import BaseFacts, StyleReport
from domain.results import Artifact, Preview, PreviewScores, TrainingMetric
from domain.task import TrainingTask

_curve = lru_cache(lambda history, base_loss: plot_curves(history, base_loss))
_grid = lru_cache(draw_previews)


@pytest.fixture(autouse=True)
def drawn_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cache plots: many reports of these tests contain the same ones."""
    reporter = "adapters.report.reporter"
    monkeypatch.setattr(
        f"{reporter}.plot_curves", lambda history, base_loss: _curve(tuple(history), base_loss)
    )
    monkeypatch.setattr(f"{reporter}.draw_previews", _grid)


VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """Parses a page and fails if its tags are not balanced."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open[-1:] != ["style"]:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def png(colour: str = "teal", size: tuple[int, int] = (64, 64)) -> bytes:
    file = BytesIO()
    Image.new("RGB", size, colour).save(file, "PNG")
    return file.getvalue()


def make_image(
    name: str, pixels: str, perceptual_hash: int, caption: str | None = None
) -> TrainingImage:
    facts = ImageFacts(400, 300, pixels, perceptual_hash)
    return TrainingImage(name, png(size=(400, 300)), facts, caption)


def previews(colour: str, *prompts: str) -> tuple[Preview, ...]:
    return tuple(
        Preview(prompt, seed, png(colour)) for seed, prompt in enumerate(prompts, start=41)
    )


REPORT = StyleReport(
    task=TrainingTask(
        task_id="550e8400-e29b-41d4-a716-446655440000",
        style_id=123,
        images=(),
        tags=("watercolor", "portrait"),
        created_at=datetime(2025, 1, 20, 10, tzinfo=UTC),
    ),
    base=BaseFacts("org/base-1-5", is_sd15=True),
    parameters=TrainingParameters(epochs=40, resolution=512, trigger_word="inkwash"),
    images=ImageSet(
        (
            make_image("one.png", "a", 0, "a lighthouse in the rain"),
            make_image("two.png", "b", 0xFFFF),
            make_image("two copy.png", "b", 0xFFFF),
            make_image("two again.jpg", "c", 0xFFFE),
        ),
        (
            RejectedImage("holiday.gif", "it is a GIF file"),
            RejectedImage("tiny.png", "it is 10 x 10 pixels"),
        ),
    ),
    history=[EpochRecord(epoch, 0.2 / epoch, 1e-4) for epoch in range(1, 41)],
    before=previews("red", "a red fox", "a quiet harbour"),
    after=previews("blue", "a red fox", "a quiet harbour"),
    artifact=Artifact(Location("models", "models/style_123.safetensors"), "5f" * 32, 3_243_112),
    metric=TrainingMetric(loss=0.0625, epochs=40, steps=1160),
    seconds=3_725.4,
    attempt=2,
    peak_memory=3_141_000_000,
)


def decode(data: bytes) -> Image.Image:
    return Image.open(BytesIO(data)).convert("RGB")


def render(report: StyleReport = REPORT) -> dict[str, bytes]:
    return {file.name: file.data for file in HtmlReporter(decode).render(report)}


def page(report: StyleReport = REPORT) -> Page:
    return Page(render(report)["report.html"].decode())


@pytest.fixture(scope="module")
def rendered() -> dict[str, bytes]:
    return render()


@pytest.fixture(scope="module")
def shown(rendered: dict[str, bytes]) -> Page:
    return Page(rendered["report.html"].decode())


def test_a_report_has_three_files_of_the_right_types() -> None:
    types = {file.name: file.content_type for file in HtmlReporter(decode).render(REPORT)}
    assert types == {
        "loss.png": "image/png",
        "previews.png": "image/png",
        "report.html": "text/html; charset=utf-8",
    }


def test_equal_reports_give_equal_files(rendered: dict[str, bytes]) -> None:
    assert render() == rendered


def test_the_page_makes_no_network_request(rendered: dict[str, bytes], shown: Page) -> None:
    html = rendered["report.html"].decode()
    named = [
        value
        for _, attributes in shown.tags
        for name in ("src", "href", "srcset", "data", "action")
        if (value := attributes.get(name)) is not None
    ]
    assert named
    assert all(value.startswith(("data:image/", "#")) for value in named)
    assert not re.search(r"https?:|url\(|@import|src=.?//|href=.?//", html)
    assert not {"script", "link", "iframe", "object", "base"} & {tag for tag, _ in shown.tags}
    policy = next(meta for meta in shown.all("meta") if "http-equiv" in meta)
    assert "default-src 'none'" in str(policy["content"])


def test_the_page_declares_language_title_and_viewport(shown: Page) -> None:
    assert shown.all("html") == [{"lang": "en"}]
    assert any(meta.get("name") == "viewport" for meta in shown.all("meta"))
    assert "Style 123" in shown.text
    assert [tag for tag, _ in shown.tags].count("h1") == 1


def test_every_inner_link_has_its_target(shown: Page) -> None:
    places = {attributes.get("id") for _, attributes in shown.tags}
    links = [str(link["href"]) for link in shown.all("a")]
    assert len(links) == 5
    assert {link.removeprefix("#") for link in links} <= places


def test_every_image_has_alternative_text(shown: Page) -> None:
    alternatives = [str(image["alt"]) for image in shown.all("img")]
    assert "Before the training: a red fox" in alternatives
    assert "After the training: a red fox" in alternatives
    assert "a lighthouse in the rain" in alternatives
    assert "two.png" in alternatives
    curve = next(text for text in alternatives if text.startswith("Curve of the loss"))
    assert "0.2000 in epoch 1, 0.0050 in epoch 40" in curve
    assert len(alternatives) == 2 * 2 + 1 + 4
    assert len(shown.all("figure")) == len(alternatives)


@pytest.mark.parametrize(
    "parameters",
    [
        REPORT.parameters,
        TrainingParameters(
            epochs=7,
            resolution=768,
            learning_rate=3e-4,
            alpha=4.5,
            seed=99,
            sample_prompts=("a red fox", "a boat"),
            lr_warmup_steps=17,
            snr_gamma=5.0,
            noise_offset=0.05,
            random_flip=True,
        ),
    ],
)
def test_every_parameter_is_there_with_its_value(parameters: TrainingParameters) -> None:
    text = page(replace(REPORT, parameters=parameters)).text
    table = text[text.index("Parameters epochs") :]
    for field in fields(parameters):
        assert f" {field.name} " in table
    for line in (
        f"epochs {parameters.epochs} resolution {parameters.resolution} ",
        f"learning_rate {parameters.learning_rate:g} ",
        f"alpha {parameters.network_alpha:g} ",
        f"lr_warmup_steps {parameters.warmup_steps(1160)} ",
        f"random_flip {'yes' if parameters.random_flip else 'no'} ",
    ):
        assert line in table
    assert "None" not in table


def test_omitted_parameters_show_their_resolved_values() -> None:
    parameters = TrainingParameters(epochs=40, resolution=512)
    text = page(replace(REPORT, parameters=parameters)).text
    assert "trigger_word none sample_prompts the first distinct captions" in text
    assert "lr_warmup_steps 58" in text
    assert "snr_gamma off" in text


def test_a_long_caption_is_folded_and_whole() -> None:
    long = "a fox in the snow, " * 20
    usable = [replace(image, caption=long) for image in REPORT.images.usable]
    found = page(replace(REPORT, images=replace(REPORT.images, usable=tuple(usable))))
    assert found.tags.count(("details", {})) == len(usable)
    assert long in "".join(found.texts).replace("…", "")


def test_images_used_are_named_with_caption_and_size(shown: Page) -> None:
    assert "one.png a lighthouse in the rain 400 \N{MULTIPLICATION SIGN} 300" in shown.text
    assert "two.png no caption of its own" in shown.text


def test_a_generated_caption_is_shown_as_one() -> None:
    usable = tuple(
        image if image.caption else replace(image, generated_caption="a red fox")
        for image in REPORT.images.usable
    )
    found = page(replace(REPORT, images=replace(REPORT.images, usable=usable)))
    assert "two.png a red fox caption generated by a model" in found.text
    assert found.text.count("caption generated by a model") == 3


def test_rejected_and_repeated_images_are_named_with_the_reason(shown: Page) -> None:
    assert "holiday.gif it is a GIF file" in shown.text
    assert "tiny.png it is 10 x 10 pixels" in shown.text
    assert "nearly the same image two.png, two copy.png, two again.jpg" in shown.text


def test_notes_on_an_image_are_below_it() -> None:
    usable = REPORT.images.usable[0]
    facts = replace(usable.facts, notes=("its end is missing",))
    noted = ImageSet((replace(usable, facts=facts, repeats=10),))
    text = page(replace(REPORT, images=noted)).text
    assert "10 times an epoch its end is missing" in text


def test_rejected_and_repeated_images_have_a_section_only_if_there_are_any() -> None:
    text = page(replace(REPORT, images=ImageSet(REPORT.images.usable[:1]))).text
    assert "left out" not in text
    assert "Duplicates" not in text


def test_the_weights_are_named_and_their_use_explained(shown: Page) -> None:
    for words in (
        "style_123.safetensors",
        "3.24 MB (3,243,112 bytes)",
        "5f" * 32,
        'load_lora_weights("style_123.safetensors")',
        'pipeline("a red fox")',
        "models/loras",
        "a red fox <lora:style_123:1>",
        "Put inkwash into the prompt",
        "Base model org/base-1-5",
    ):
        assert words in shown.text
    assert "trials only" not in shown.text


@pytest.mark.parametrize("use_dora", [False, True])
def test_a_style_of_another_base_names_no_sd15_programs(use_dora: bool) -> None:
    base = BaseFacts("small_base", is_sd15=False)
    text = page(
        replace(REPORT, base=base, parameters=replace(REPORT.parameters, use_dora=use_dora))
    ).text
    assert "Base model small_base" in text
    assert "for trials only: it does not load with Stable Diffusion 1.5" in text
    assert "ComfyUI" not in text
    assert "AUTOMATIC1111" not in text
    assert "load_lora_weights" in text


@pytest.mark.parametrize(
    ("seconds", "text"), [(12.4, "12 s"), (754.0, "12 min 34 s"), (3_725.4, "1 h 2 min")]
)
def test_the_head_shows_duration_attempt_and_memory(seconds: float, text: str) -> None:
    head = page(replace(REPORT, seconds=seconds)).text
    assert f"Loss 0.0625 Duration {text} Attempt 2 Peak memory 3.14 GB" in head
    assert "Task 550e8400-e29b-41d4-a716-446655440000, requested 2025-01-20 10:00 UTC" in head


HOSTILE = "\"><script>alert(1)</script><img src='x' onerror=\"y\">{{ 7 * 7 }}'"


def test_hostile_names_and_captions_are_escaped() -> None:
    report = replace(
        REPORT,
        task=replace(REPORT.task, task_id=HOSTILE, tags=(HOSTILE,)),
        parameters=TrainingParameters(
            epochs=40, resolution=512, trigger_word=HOSTILE, sample_prompts=(HOSTILE,)
        ),
        images=ImageSet(
            (make_image(HOSTILE, "a", 0, HOSTILE), make_image(HOSTILE, "a", 0)),
            (RejectedImage(HOSTILE, HOSTILE),),
        ),
        before=previews("red", HOSTILE),
        after=previews("blue", HOSTILE),
        artifact=replace(REPORT.artifact, location=Location("b", "<script>.safetensors")),
    )
    found = page(report)
    assert "script" not in {tag for tag, _ in found.tags}
    assert not any(name.startswith("on") for _, attrs in found.tags for name in attrs)
    assert all(str(image["src"]).startswith("data:image/") for image in found.all("img"))
    assert found.text.count(HOSTILE) >= 8
    assert " 49'" not in found.text


def test_a_name_that_is_not_unicode_is_shown_with_replacements() -> None:
    images = ImageSet((make_image("caf\udce9.png", "a", 0),))
    assert "caf?.png" in page(replace(REPORT, images=images)).text


def opened(data: bytes, size: tuple[int, int]) -> Image.Image:
    image = Image.open(BytesIO(data))
    image.load()
    assert (image.format, image.size) == ("PNG", size)
    return image.convert("RGB")


@pytest.mark.parametrize("epochs", [1, 2, 5, 300])
def test_a_run_of_any_length_has_a_curve(epochs: int) -> None:
    curve = opened(
        plot_curves([EpochRecord(n + 1, 0.1, 1e-4) for n in range(epochs)]), (1600, 800)
    )
    drawn = {colour for _, colour in curve.getcolors(2**20) or ()}
    assert (47, 102, 144) in drawn


def grid_size(side: int, lines: Sequence[int]) -> tuple[int, int]:
    """Columns and rows with gaps of 24, text lines of 26 pixels, as many as given per row."""
    rows = sum(26 * count + 12 + side for count in lines)
    return 2 * side + 3 * 24, 26 + 2 * 24 + rows + 48 * len(lines) - 24


def test_the_grid_has_before_on_the_left_and_after_on_the_right() -> None:
    grid = opened(draw_previews(REPORT.before, REPORT.after), grid_size(256, [2, 2]))
    colours = {colour: count for count, colour in grid.getcolors(2**20) or ()}
    assert colours[(255, 0, 0)] == colours[(0, 0, 255)] == 2 * 256**2
    middle = 26 + 48 + 2 * 26 + 12 + 128
    assert grid.getpixel((24 + 128, middle)) == (255, 0, 0)
    assert grid.getpixel((2 * 24 + 256 + 128, middle)) == (0, 0, 255)


def test_large_previews_are_scaled_down_and_keep_their_shape() -> None:
    wide = (Preview("a fox", 1, png("red", (1024, 512))),)
    grid = opened(draw_previews(wide, wide), grid_size(512, [2]))
    colours = {colour: count for count, colour in grid.getcolors(2**20) or ()}
    assert colours[(255, 0, 0)] == 2 * 512 * 256


def test_a_narrow_preview_is_centred_in_its_cell() -> None:
    tall = (Preview("a fox", 1, png("red", (128, 256))),)
    grid = opened(draw_previews(tall, tall), grid_size(256, [2]))
    row = [grid.getpixel((x, 200)) == (255, 0, 0) for x in range(24, 24 + 256)]
    assert row == [False] * 64 + [True] * 128 + [False] * 64


@pytest.mark.parametrize(
    ("prompt", "lines"), [("", 1), ("word " * 100, 4), ("x" * 500, 4), ("one\ntwo\0\udce9", 2)]
)
def test_a_prompt_of_any_length_fits_in_three_lines_above_its_seed(
    prompt: str, lines: int
) -> None:
    one = (Preview(prompt, 1, png("red")),)
    grid = opened(draw_previews(one, one), grid_size(256, [lines]))
    margin = grid.crop((grid.width - 12, 0, *grid.size))
    assert len(margin.getcolors() or ()) == 1, "nothing is cut off at the edge"


def test_a_run_without_previews_has_a_report() -> None:
    files = render(replace(REPORT, before=(), after=()))
    assert set(files) == {"loss.png", "report.html"}
    text = Page(files["report.html"].decode()).text
    assert "Before and after" not in text
    assert "inkwash a house by the sea <lora:style_123:1>" in text


def test_thumbnails_are_small_jpegs_with_width_and_height(shown: Page) -> None:
    thumbnails = [
        image for image in shown.all("img") if str(image["src"]).startswith("data:image/jpeg")
    ]
    assert len(thumbnails) == 4
    assert {(image["width"], image["height"]) for image in thumbnails} == {
        (str(THUMBNAIL_PIXELS), "120")
    }


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((400, 300), "trained at 576 x 448, 4 % cropped"),
        ((1800, 1200), "trained at 576 x 384, not cropped"),
        ((800, 2400), "trained at 320 x 768, 20 % cropped"),
    ],
)
def test_each_image_has_its_size_in_training_and_its_cropped_share(
    size: tuple[int, int], message: str
) -> None:
    facts = replace(REPORT.images.usable[0].facts, width=size[0], height=size[1])
    usable = (replace(REPORT.images.usable[0], facts=facts),)
    text = page(replace(REPORT, images=ImageSet(usable))).text
    assert message in text.replace("\N{MULTIPLICATION SIGN}", "x")


MEASURED = [
    replace(record, evaluation_loss=0.3 / record.epoch, validation_loss=loss)
    for record, loss in zip(REPORT.history[9::10], (0.30, 0.20, 0.21, 0.25), strict=True)
]


def test_the_best_epoch_is_named_with_its_measured_images() -> None:
    held_out = page(replace(REPORT, history=MEASURED)).text
    assert "lowest in epoch 20: 0.2000 on held-out images" in held_out
    assert "The file has the weights of epoch 40 (deliver=auto takes the last epoch" in held_out
    without = [replace(record, validation_loss=None) for record in MEASURED]
    text = page(replace(REPORT, history=without)).text
    assert "lowest in epoch 40: 0.0075 on the training images" in text
    assert "No image was held out" in text
    assert "was lowest" not in page().text


def test_the_measured_loss_is_shown_next_to_the_base_models() -> None:
    metric = replace(REPORT.metric, measured_loss=0.2, base_loss=0.31, delivered_epoch=40)
    report = replace(REPORT, history=MEASURED, metric=metric)
    text = page(report).text
    assert "0.2000 base model 0.3100" in text
    assert "The base model without the style has 0.3100." in text
    assert "The last epoch was worse" not in text
    assert render(report)["loss.png"] != render(replace(REPORT, history=MEASURED))["loss.png"]


def test_an_earlier_epochs_weights_are_announced_with_the_reason() -> None:
    metric = replace(REPORT.metric, delivered_epoch=20)
    text = page(replace(REPORT, history=MEASURED, metric=metric)).text
    assert "The last epoch was worse than epoch 20. Next time" in text
    assert "The file has the weights of epoch 20" in text


def test_preview_scores_are_drawn_and_described() -> None:
    scores = {10: PreviewScores(0.25, 0.75), 40: PreviewScores(0.875, 1.0)}
    report = replace(REPORT, scores=scores)
    html = render(report)["report.html"].decode()
    assert "epoch 10: closeness 0.25, faithfulness 0.75; epoch 40: closeness 0.88" in html
    assert "Closeness" in page(report).text
    assert "Closeness" not in page().text
    assert plot_scores(scores) != plot_scores({**scores, 40: PreviewScores(-0.5, 0.5)})


def test_overfitting_is_reported() -> None:
    assert "begins to memorise its images" in page(replace(REPORT, history=MEASURED)).text
    falling = [replace(record, validation_loss=1 / record.epoch) for record in MEASURED]
    assert "memorise" not in page(replace(REPORT, history=falling)).text


def test_measured_losses_are_drawn_into_the_curve() -> None:
    plain = [replace(record, evaluation_loss=None, validation_loss=None) for record in MEASURED]
    assert plot_curves(MEASURED) != plot_curves(plain)


PULLED = [
    replace(record, gradient_norm=0.5 / record.epoch, largest_gradient_norm=2 / record.epoch)
    for record in REPORT.history
]


def test_gradient_norms_are_drawn_below_the_loss() -> None:
    files = render(replace(REPORT, history=PULLED))
    opened(files["loss.png"], (1600, 1200))
    found = Page(files["report.html"].decode())
    curve = next(image for image in found.all("img") if "Curve of" in str(image["alt"]))
    assert (curve["width"], curve["height"]) == ("1600", "1200")
    for words in ("gradient norm: 0.5 in epoch 1, 0.0125 in epoch 40", "was 2, in epoch 1"):
        assert words in str(curve["alt"])
    assert "before it is clipped to 1." in found.text


def test_epochs_without_a_gradient_norm_are_left_out_of_its_curve() -> None:
    # As after a resume from a checkpoint of a trainer that did not record them.
    history = [*REPORT.history[:20], *PULLED[20:]]
    assert "norm: 0.0238 in epoch 21, 0.0125 in epoch 40" in curves_in_words(history)
    assert plot_curves(history) != plot_curves(PULLED)


def test_without_gradient_norms_they_have_no_curve_and_no_text(shown: Page) -> None:
    opened(render()["loss.png"], (1600, 800))
    assert "gradient" not in shown.text
    assert not any("gradient" in str(image["alt"]) for image in shown.all("img"))


@pytest.mark.parametrize("epochs", [1, 2])
def test_one_epoch_is_enough_for_a_curve_of_gradients(epochs: int) -> None:
    drawn = opened(plot_curves(PULLED[:epochs]), (1600, 1200))
    below = drawn.crop((0, 800, 1600, 1200))
    assert (47, 102, 144) in {colour for _, colour in below.getcolors(2**20) or ()}


def test_stalled_training_is_reported_with_a_remedy() -> None:
    still = [replace(record, stalled=record.epoch in (7, 8)) for record in PULLED]
    text = page(replace(REPORT, history=still)).text
    assert "The training stalled in epochs 7 to 8: the style's weights did not change." in text
    assert "The learning rate, 0.0001 at most in these epochs, is too low" in text
    assert "stalled" not in page(replace(REPORT, history=PULLED)).text


def test_checkpoint_previews_are_shown_by_epoch_for_every_prompt() -> None:
    checkpoint_previews = tuple(
        (epoch, (png("red"), png("green"))) for epoch in range(10, 100, 10)
    )
    found = page(replace(REPORT, checkpoint_previews=checkpoint_previews))
    labels = [str(image["alt"]) for image in found.all("img") if "epoch" in str(image["alt"])]
    shown = [label for label in labels if label.startswith("epoch")]
    assert [label for label in shown if "a red fox" in label] == [
        f"epoch {epoch}: a red fox" for epoch in (10, 30, 40, 60, 70, 90)
    ]
    assert len(shown) == 12


def test_previews_of_other_prompts_are_not_shown() -> None:
    checkpoint_previews = ((10, (png("red"),)),)
    assert (
        "During the training"
        not in page(replace(REPORT, checkpoint_previews=checkpoint_previews)).text
    )


def test_for_dora_only_programs_that_load_it_are_explained() -> None:
    dora = replace(REPORT, parameters=replace(REPORT.parameters, use_dora=True))
    text = page(dora).text
    assert "--export kohya style_123.safetensors" in text
    assert "models/loras" not in text
    assert "models/loras" in page().text
