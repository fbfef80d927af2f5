"""A worker in several states, with its status page at a real address."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from io import BytesIO
from typing import Any

from adapters.common.gpu_reading import GpuReading
from adapters.logs.redact import Redactor
from adapters.memory import ManualClock
from adapters.metrics.gpus import GpuCollector
from adapters.metrics.instruments import Metrics
from adapters.metrics.jobs import JobMetrics
from adapters.status_page.app import Sources
from adapters.status_page.previews import PreviewCache
from adapters.status_page.state import WorkerState
from application.event_bus import EventBus, LeaseWritten
from application.settlement import Ack, Requeue, RetryLater
from domain.events import (
    ArtifactStored,
    CheckpointSaved,
    FailureRecorded,
    JobCompleted,
    JobFailed,
    JobInterrupted,
    JobStarted,
    NotificationBegan,
    PreviewsDrawn,
    ProgressMade,
    TrainingBegan,
    TrainingFinished,
)
from domain.failure import Failure, FailureCode
from domain.location import Location
from domain.parameters import TrainingParameters
from domain.progress import Progress
from domain.results import Artifact, CheckpointRef, Preview, TrainingMetric
from domain.task import TrainingTask
from tests.application.world import received, settled

SECRET = "a-secret-token-that-no-page-may-show"
GPU = GpuReading(
    index=0,
    name="NVIDIA GeForce RTX 4090",
    memory_used=9_800_000_000,
    memory_total=25_757_220_864,
    utilization=0.93,
    temperature=67,
    power=312.4,
)
ARTIFACT = Artifact(Location("models", "models/style_41.safetensors"), "ab" * 32, 3_200_000)
PROMPTS = ("a lighthouse on a cliff, mystyle", "a bowl of fruit, mystyle", "two boats, mystyle")
DISK_IS_FINE = (True, "51 GB free in /var/lib/style-trainer")
NASTY = "<img src=x onerror=alert(1)> & <script>alert(2)</script>"


def task(style_id: int) -> TrainingTask:
    """A task for that style."""
    return TrainingTask(
        task_id=f"550e8400-e29b-41d4-a716-4466554400{style_id:02d}",
        style_id=style_id,
        images=(Location("media", "0.jpg"),),
    )


@dataclass
class Scene:
    """One worker, controlled by the test."""

    name: str = "atelier-1"
    clock: ManualClock = field(default_factory=ManualClock)
    gpus: Sequence[GpuReading] = (GPU,)
    queues: dict[str, Any] = field(
        default_factory=lambda: {
            "depths": {"model_training": 3, "model_training.retry": 1, "model_training.dead": 0},
            "trouble": None,
            "age": 4.0,
        }
    )
    disk: tuple[bool, str] = DISK_IS_FINE

    def __post_init__(self) -> None:
        self.metrics = Metrics("atelier-1", "1.2.3")
        GpuCollector(lambda: self.gpus, self.metrics.registry)
        self.worker_state = WorkerState(self.name, "1.2.3", self.clock)
        self.worker_state.device = "cuda"
        self.worker_state.model = "stable-diffusion-v1-5"
        self.previews = PreviewCache()
        self.counted = counted = JobMetrics(self.metrics, self.clock.monotonic)
        self.publish = EventBus(self.worker_state, counted, self.previews)

    def sources(self) -> Sources:
        """The data sources of the page."""

        def broker() -> tuple[bool, str]:
            trouble = self.queues["trouble"]
            return trouble is None, trouble or "rabbitmq:5672 responds"

        def model() -> tuple[bool, str]:
            loaded = self.worker_state.model
            return loaded is not None, loaded or "it is being loaded"

        return Sources(
            worker_state=self.worker_state,
            previews=self.previews,
            registry=self.metrics.registry,
            checks={"Queue": broker, "Base model": model, "Disk": lambda: self.disk},
            gpus=lambda: self.gpus,
            queues=lambda: self.queues,
            configuration=[
                {"name": "RABBITMQ_HOST", "value": "rabbitmq", "meaning": "Where the broker is"},
                {"name": "RABBITMQ_PASS", "value": "set", "meaning": "Its password"},
                {"name": "LEASE_SECONDS", "value": "60.0", "meaning": "Life of a lease"},
            ],
            redact=Redactor([SECRET]).deep,
        )

    # --- what happens ---------------------------------------------------------------------

    def start(self, style_id: int, *, attempt: int = 1, resumed_from: int | None = None) -> None:
        """A task starts."""
        self.publish(received(task(style_id)))
        expires = self.clock.now() + timedelta(seconds=60)
        self.publish(LeaseWritten(task_id=task(style_id).task_id, expires_at=expires, error=None))
        at = None
        if resumed_from is not None:
            at = CheckpointRef(Location("models", "checkpoint"), resumed_from, resumed_from * 12)
        self.publish(JobStarted(**ids(style_id), attempt=attempt, resumed_from=at))

    def train(self, style_id: int, *, epochs: int = 200, first: int = 1, until: int = 200) -> None:
        """Train epochs of twelve steps, half a second each."""
        self.clock.advance(3.4)
        parameters = TrainingParameters(epochs=epochs, resolution=512)
        self.publish(TrainingBegan(**ids(style_id), parameters=parameters, image_count=12))
        for epoch in range(first, until + 1):
            self.clock.advance(6.0)
            wave = 0.012 * math.sin(epoch * 1.7) + 0.008 * math.sin(epoch * 4.1)
            progress = Progress(
                current_epoch=epoch,
                total_epochs=epochs,
                current_step=epoch * 12,
                total_steps=epochs * 12,
                loss=0.11 + 0.09 * math.exp(-epoch / 45) + wave,
                steps_per_second=2.0,
            )
            self.publish(ProgressMade(**ids(style_id), progress=progress, epoch_finished=True))
            if epoch % 10 == 0:
                at = CheckpointRef(Location("models", "checkpoint"), epoch, epoch * 12)
                self.publish(CheckpointSaved(**ids(style_id), checkpoint=at))

    def complete(self, style_id: int, *, previews: bool = True) -> None:
        """The style is uploaded and announced."""
        metric = TrainingMetric(loss=0.1106, epochs=200, steps=2400)
        self.publish(TrainingFinished(**ids(style_id), metric=metric))
        self.clock.advance(8.0)
        if previews:
            self.draw(style_id, 200)
        self.publish(ArtifactStored(**ids(style_id), artifact=ARTIFACT))
        self.publish(NotificationBegan(**ids(style_id), call=1))
        self.publish(JobCompleted(**ids(style_id), artifact=ARTIFACT))
        self.publish(settled(task(style_id), Ack()))

    def draw(self, style_id: int, epoch: int, *, finished: bool = True) -> None:
        """Previews are drawn; those without the style only once it is finished."""
        for with_lora in (False, True) if finished else (True,):
            drawn = tuple(Preview(p, n, a_png(n, with_lora)) for n, p in enumerate(PROMPTS))
            self.publish(
                PreviewsDrawn(**ids(style_id), epoch=epoch, previews=drawn, with_lora=with_lora)
            )

    def fail(self, style_id: int, code: FailureCode, message: str) -> None:
        """The job fails."""
        failure = Failure(code, message)
        self.publish(FailureRecorded(**ids(style_id), failure=failure))
        self.publish(NotificationBegan(**ids(style_id), call=1))
        self.publish(JobFailed(**ids(style_id), failure=failure))
        self.publish(settled(task(style_id), Ack()))

    def interrupt(self, style_id: int) -> None:
        """The worker is stopped."""
        self.publish(JobInterrupted(**ids(style_id), reason="its worker shut down", failures=0))
        self.publish(settled(task(style_id), Requeue()))


def ids(style_id: int) -> Any:
    """The ids that every event carries."""
    return {"task_id": task(style_id).task_id, "style_id": style_id}


def a_png(number: int, style: bool) -> bytes:
    """A sample image."""
    from PIL import Image, ImageDraw

    backs = [["#9aa7b0", "#b0a79a", "#a3b09a"], ["#22577a", "#c9653b", "#38a3a5"]][style]
    image = Image.new("RGB", (256, 256), backs[number % 3])
    draw = ImageDraw.Draw(image)
    for ring in range(6):
        edge = 20 + ring * 18
        colour = (250 - 30 * ring, 200 - 20 * number, 120 + 20 * ring * style)
        draw.ellipse((edge, edge, 256 - edge, 256 - edge), outline=colour, width=4 + 4 * style)
    file = BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


# --- the scenes --------------------------------------------------------------------------


def idle() -> Scene:
    """Nothing has happened yet."""
    scene = Scene()
    scene.queues["depths"] = {"model_training": 0, "model_training.retry": 0}
    scene.clock.advance(95)
    return scene


def training() -> Scene:
    """A resumed job halfway through, after other jobs."""
    scene = Scene()
    scene.start(41)
    scene.train(41)
    scene.complete(41)
    scene.clock.advance(30)
    scene.start(39)
    scene.clock.advance(2)
    scene.fail(39, FailureCode.LOW_QUALITY_DATA, "Only 4 of 12 images can be used.")
    scene.start(42)
    scene.train(42, until=46)
    scene.interrupt(42)
    scene.clock.advance(10)
    scene.publish(received(task(40)))
    lease = "worker atelier-2 holds the lease"
    scene.publish(settled(task(40), RetryLater(48.0, lease)))
    scene.start(42, attempt=2, resumed_from=40)
    scene.train(42, first=41, until=127)
    scene.clock.advance(2)
    return scene


def side_by_side() -> Scene:
    """Three active jobs: two in training, one still fetching its images."""
    scene = Scene()
    scene.start(41)
    scene.train(41)
    scene.complete(41)
    scene.start(42)
    scene.train(42, until=127)
    scene.draw(42, 120, finished=False)
    scene.start(43, attempt=2, resumed_from=40)
    scene.train(43, epochs=120, first=41, until=52)
    scene.draw(43, 50, finished=False)
    scene.start(44)
    scene.clock.advance(2)
    return scene


def failed(name: str = "atelier-1") -> Scene:
    """The last job failed with a message that contains markup; the broker is unavailable."""
    scene = Scene(name, gpus=())
    scene.start(43)
    scene.train(43, until=30)
    scene.fail(43, FailureCode.GPU_OOM, f"The card's memory did not suffice {NASTY} {SECRET}")
    scene.queues.update(depths={}, trouble="no connection to rabbitmq:5672 (refused)", age=None)
    scene.disk = (False, "0.4 GB free in /var/lib/style-trainer; 2 GB are needed")
    return scene
