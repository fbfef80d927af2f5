import logging
import re
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from adapters.common.text import say
from adapters.console.notifier import ConsoleNotifier
from adapters.console.progress import ProgressDisplay
from adapters.logs.events import log_event
from domain.events import (
    ArtifactStored,
    CheckpointSaved,
    Event,
    FailureRecorded,
    JobCompleted,
    JobFailed,
    JobInterrupted,
    JobStarted,
    NotificationBegan,
    ProgressMade,
    SecondTryBegan,
    SlotAwaited,
    TrainingBegan,
    TrainingFinished,
)
from domain.failure import Failure, FailureCode
from domain.location import Location
from domain.parameters import TrainingParameters
from domain.progress import Progress
from domain.results import Artifact, CheckpointRef, TrainingMetric

TASK = "550e8400-e29b-41d4-a716-446655440000"
ARTIFACT = Artifact(Location("models", "models/style_7.safetensors"), "ab" * 32, 3_000_000)
METRIC = TrainingMetric(loss=0.0625, epochs=50, steps=500)
FAILURE = Failure(FailureCode.GPU_OOM, "The card is\ntoo small [for this].")
CHECKPOINT = CheckpointRef(Location("models", "jobs/x/checkpoints/y.safetensors"), 20, 200)


@pytest.fixture(autouse=True)
def _ordinary_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)


def pipe(width: int = 40) -> tuple[Console, StringIO]:
    file = StringIO()
    return Console(file=file, width=width), file


def terminal(width: int = 100) -> tuple[Console, StringIO]:
    file = StringIO()
    console = Console(
        file=file,
        force_terminal=True,
        force_interactive=True,
        width=width,
        color_system="standard",
    )
    return console, file


def started(resumed_from: CheckpointRef | None = None) -> JobStarted:
    return JobStarted(task_id=TASK, style_id=7, attempt=2, resumed_from=resumed_from)


def began(images: int = 10, epochs: int = 50) -> TrainingBegan:
    return TrainingBegan(
        task_id=TASK,
        style_id=7,
        parameters=TrainingParameters(epochs=epochs, resolution=512),
        image_count=images,
    )


def made(step: int, *, epochs: int = 50, per_epoch: int = 10) -> ProgressMade:
    progress = Progress(
        current_epoch=step // per_epoch,
        total_epochs=epochs,
        current_step=step,
        total_steps=epochs * per_epoch,
        loss=0.125 if step >= per_epoch else None,
        steps_per_second=4.0 if step > 1 else None,
    )
    return ProgressMade(
        task_id=TASK, style_id=7, progress=progress, epoch_finished=step % per_epoch == 0
    )


FINISHED = TrainingFinished(task_id=TASK, style_id=7, metric=METRIC)
GIVEN_UP = FailureRecorded(task_id=TASK, style_id=7, failure=FAILURE)
INTERRUPTED = JobInterrupted(task_id=TASK, style_id=7, reason="its worker\nshut down", failures=0)
SAVED = CheckpointSaved(task_id=TASK, style_id=7, checkpoint=CHECKPOINT)
STORED = ArtifactStored(task_id=TASK, style_id=7, artifact=ARTIFACT)
TOLD = NotificationBegan(task_id=TASK, style_id=7, call=1)
COMPLETED = JobCompleted(task_id=TASK, style_id=7, artifact=ARTIFACT)
OTHERS = [
    SAVED,
    STORED,
    TOLD,
    COMPLETED,
    JobFailed(task_id=TASK, style_id=7, failure=FAILURE),
    SlotAwaited(task_id=TASK, style_id=7),
]
EVERY_EVENT = [started(), started(CHECKPOINT), began(), made(10), FINISHED, GIVEN_UP, INTERRUPTED]
EVERY_EVENT += OTHERS


# --- the notifier ------------------------------------------------------------------------


def test_outcomes_of_concurrent_jobs_are_whole_lines_that_name_their_style() -> None:
    console, file = pipe()
    notifier, together = ConsoleNotifier(console), threading.Barrier(3, timeout=30)

    def end(style_id: int) -> None:
        for _ in range(100):
            together.wait()
            notifier.failed("task", style_id, Failure(FailureCode.GPU_OOM, "too small"))

    workers = [threading.Thread(target=end, args=(style_id,)) for style_id in (1, 2, 3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    lines = Counter(file.getvalue().splitlines())
    assert lines == {f"style {n}: GPU_OOM: too small": 100 for n in (1, 2, 3)}


def test_a_finished_style_is_one_line_with_its_path() -> None:
    console, file = pipe()
    ConsoleNotifier(console).completed("task", 7, ARTIFACT, METRIC)
    line = "style 7 is ready: s3://models/models/style_7.safetensors (loss 0.0625)\n"
    assert file.getvalue() == line


def test_a_finished_style_is_shown_beside_the_base_with_its_epoch() -> None:
    console, file = pipe()
    metric = replace(METRIC, measured_loss=0.05, base_loss=0.1, delivered_epoch=40)
    ConsoleNotifier(console).completed("task", 7, ARTIFACT, metric)
    summary = "(loss 0.0625, measured loss 0.0500 (base model 0.1000), weights of epoch 40 of 50)"
    assert summary in file.getvalue()


def test_the_path_is_printed_as_the_caller_gave_it() -> None:
    console, file = pipe()
    notifier = ConsoleNotifier(console, {ARTIFACT.location.bucket: Path("my  [out]")})
    notifier.completed("task", 7, ARTIFACT, METRIC)
    assert "ready: my  [out]/models/style_7.safetensors (" in file.getvalue()


def test_a_failure_is_one_line_with_code_and_message() -> None:
    console, file = pipe()
    ConsoleNotifier(console).failed("task", 7, FAILURE)
    assert file.getvalue() == "style 7: GPU_OOM: The card is too small [for this].\n"


def test_progress_is_for_the_debug_log_only(caplog: pytest.LogCaptureFixture) -> None:
    console, file = pipe()
    with caplog.at_level(logging.DEBUG):
        ConsoleNotifier(console).progress(7, made(250).progress)
    assert file.getvalue() == ""
    assert [record.levelno for record in caplog.records] == [logging.DEBUG]
    assert "epoch 25/50 (50 %)" in caplog.text


# --- the display where there is no terminal -------------------------------------------------


def shown(*events: Event) -> list[str]:
    console, file = pipe()
    with ProgressDisplay(console) as display:
        for event in events:
            display(event)
    assert "\x1b" not in file.getvalue()
    return file.getvalue().splitlines()


def test_a_pipe_gets_one_line_per_tenth_of_the_run() -> None:
    lines = shown(started(), began(), *(made(step) for step in range(1, 501)), SAVED, FINISHED)
    assert lines[0] == "training on 10 images for 50 epochs"
    assert lines[1] == "epoch 1/50 (2 %), loss 0.1250, 4.0 steps/s, 0:02:03 left"
    places = [line.partition(",")[0] for line in lines[2:]]
    assert places == [f"epoch {5 * n}/50 ({10 * n} %)" for n in range(1, 11)]


def test_a_short_run_gets_a_line_for_each_epoch() -> None:
    steps = [made(step, epochs=3, per_epoch=4) for step in range(1, 13)]
    assert len(shown(began(epochs=3), *steps)) == 1 + 3


def test_a_measured_loss_is_shown_next_to_the_base_models() -> None:
    event = made(100)
    progress = replace(event.progress, measured_loss=0.5, base_loss=0.75)
    line = shown(began(), replace(event, progress=progress))[-1]
    assert "loss 0.1250, measured loss 0.5000 (base model 0.7500), " in line


def test_a_second_try_is_announced_with_its_learning_rate() -> None:
    again = SecondTryBegan(task_id="task", style_id=7, learning_rate=0.003)
    lines = shown(began(), made(100), again, began(), made(100))
    assert "starts over with learning rate 0.003" in lines[2]
    assert lines[3:] == lines[:2]


def test_a_resumed_run_names_its_starting_step() -> None:
    lines = shown(started(CHECKPOINT), began(), made(201), made(210))
    assert lines[0] == "resuming from epoch 20"
    assert lines[2].startswith("epoch 21/50 (42 %)")


def test_a_run_that_rolls_back_does_not_repeat_its_lines() -> None:
    assert len(shown(began(), made(100), made(50), made(100))) == 2


def test_a_second_run_is_shown_like_the_first() -> None:
    once = [began(), made(250), made(500), FINISHED]
    assert shown(*once, *once) == shown(*once) * 2


def test_one_image_and_one_epoch_are_singular() -> None:
    assert shown(began(images=1, epochs=1)) == ["training on 1 image for 1 epoch"]


def test_a_slow_step_has_a_speed_too() -> None:
    event = made(10)
    slow = replace(event, progress=replace(event.progress, steps_per_second=0.05))
    assert "0.050 steps/s, 2:43:20 left" in shown(began(), slow)[-1]


# --- the display on a terminal ---------------------------------------------------------------

CURSOR_HIDDEN, CURSOR_SHOWN = "\x1b[?25l", "\x1b[?25h"


def plain(output: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output)


def test_a_terminal_gets_a_progress_bar_that_ends_with_the_run() -> None:
    console, file = terminal()
    with ProgressDisplay(console) as display:
        for event in [began(), *(made(step) for step in range(1, 501)), FINISHED, STORED, TOLD]:
            display(event)
        output = file.getvalue()
    assert "training on 10 images for 50 epochs" in plain(output)
    last = plain(output).rstrip().splitlines()[-1]
    assert last.startswith("epoch 50/50 ━")
    assert last.rstrip().endswith("drawing previews and writing the report")
    assert output.count(CURSOR_HIDDEN) == output.count(CURSOR_SHOWN) == 1


def test_after_the_last_step_the_bar_names_the_current_phase() -> None:
    console, file = terminal()
    with ProgressDisplay(console) as display:
        for event in (began(), made(500)):
            display(event)
    assert "0:00:00 left" not in plain(file.getvalue())
    assert plain(file.getvalue()).rstrip().endswith("storing the last checkpoint")


def test_a_resumed_runs_bar_starts_at_the_resumed_step() -> None:
    console, file = terminal()
    with ProgressDisplay(console) as display:
        display(started(CHECKPOINT))
        display(began())
    assert plain(file.getvalue()).rstrip().splitlines()[-1].startswith("epoch 20/50 ")


def test_an_interrupt_explains_its_effect_and_that_of_a_second_one() -> None:
    console, file = pipe()
    with ProgressDisplay(console) as display:
        display(began())
        display.stopping()
        assert "to start over" in display.how_to_continue()
        display(SAVED)
        assert "to resume from epoch 20" in display.how_to_continue()
    assert "stopping: saving a checkpoint; press" in file.getvalue()


def test_an_interrupt_after_the_training_says_how_to_get_the_report() -> None:
    console, file = pipe()
    with ProgressDisplay(console) as display:
        for event in (began(), SAVED, FINISHED, STORED, TOLD, COMPLETED):
            display(event)
        display.stopping()
        assert display.how_to_continue() == "run the same command to write the report"
    text = "stopping: the style is stored, the same command writes its report; press Ctrl-C again"
    assert text in file.getvalue()


def test_an_interrupt_before_the_training_promises_no_checkpoint() -> None:
    console, file = pipe()
    with ProgressDisplay(console) as display:
        display(started())
        display.stopping()
    assert file.getvalue() == "stopping; press Ctrl-C again to exit immediately\n"


def test_the_length_of_the_bar_is_the_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")  # with colours the rest is drawn, too, in another one
    console, file = terminal()
    with ProgressDisplay(console) as display:
        display(began())
        display(made(250))
    assert plain(file.getvalue()).rstrip().splitlines()[-1].count("━") == 10


def test_uncoloured_text_stays_uncoloured() -> None:
    console, file = terminal()
    say(console, "3 images in /a/path: 'quoted', True")
    assert "\x1b" not in file.getvalue()


def test_a_name_with_an_emojis_code_is_printed_as_it_is() -> None:
    console, file = terminal()
    say(console, "left out fox:bear:.jpg")
    assert "fox:bear:.jpg" in file.getvalue()


def test_the_bar_is_not_redrawn_at_every_step() -> None:
    console, file = terminal()
    with ProgressDisplay(console) as display:
        display(began(epochs=10_000))
        for step in range(1, 5_001):
            display(made(step, epochs=10_000))
    assert file.getvalue().count("epoch ") < 1_000


@pytest.mark.parametrize("end", [TOLD, GIVEN_UP, INTERRUPTED])
def test_every_end_of_the_training_stops_the_bar(end: Event) -> None:
    console, file = terminal()
    display = ProgressDisplay(console)
    display(began())
    display(made(10))
    assert CURSOR_SHOWN not in file.getvalue()
    display(end)
    assert CURSOR_SHOWN in file.getvalue()


def test_an_error_restores_the_terminal() -> None:
    console, file = terminal()

    def interrupted() -> None:
        with ProgressDisplay(console) as display:
            display(began())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert CURSOR_SHOWN in file.getvalue()


def test_a_restarted_run_has_one_bar_at_a_time() -> None:
    console, file = terminal()
    with ProgressDisplay(console) as display:
        display(began())
        display(began())
    assert file.getvalue().count(CURSOR_HIDDEN) == file.getvalue().count(CURSOR_SHOWN) == 2


def test_no_color_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    def colours() -> list[str]:
        console, file = terminal()
        ConsoleNotifier(console).failed("task", 7, FAILURE)
        return re.findall(r"\x1b\[3\dm", file.getvalue())

    assert colours()
    monkeypatch.setenv("NO_COLOR", "1")
    assert not colours()


@pytest.mark.parametrize("output", [pipe, terminal])
def test_events_outside_a_run_are_accepted(
    output: Callable[[], tuple[Console, StringIO]],
) -> None:
    for event in EVERY_EVENT:
        console, _ = output()
        with ProgressDisplay(console) as display:
            display(event)


# --- the log ---------------------------------------------------------------------------------


def test_every_event_is_one_line_with_its_job(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        for event in EVERY_EVENT:
            log_event(event)
    assert len(caplog.messages) == len(EVERY_EVENT)
    for event, text in zip(EVERY_EVENT, caplog.messages, strict=True):
        assert text.startswith(f"task {TASK}, style 7: ")
        assert "\n" not in text
        assert type(event).__name__ not in text


@pytest.mark.parametrize(
    ("event", "level", "words"),
    [
        (started(CHECKPOINT), logging.INFO, "attempt 2 resumes from epoch 20, step 200"),
        (made(10), logging.DEBUG, "epoch 1/50 (2 %), loss 0.1250"),
        (GIVEN_UP, logging.WARNING, "GPU_OOM: The card is too small"),
        (INTERRUPTED, logging.WARNING, "its worker shut down"),
        (NotificationBegan(task_id=TASK, style_id=7, call=1), logging.INFO, "try 1"),
        (NotificationBegan(task_id=TASK, style_id=7, call=2), logging.WARNING, "try 2"),
    ],
)
def test_log_level_and_message_follow_the_event(
    event: Event, level: int, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        log_event(event)
    assert caplog.records[0].levelno == level
    assert words in caplog.text
