"""The routes of the status page, and their access control."""

from __future__ import annotations

import json
import re
import socket
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from adapters.status_page.app import build_app
from adapters.status_page.auth import COOKIE
from adapters.status_page.binding import InvalidBinding, check_binding
from adapters.status_page.previews import PreviewCache
from adapters.status_page.server import AddressTaken, StatusServer
from application.settlement import Ack
from application.stop_signal import StopSignal
from domain.events import PreviewsDrawn
from domain.results import Preview
from tests.application.world import World, a_task, settled
from tests.services.status_scenes import (
    SECRET,
    Scene,
    a_png,
    failed,
    idle,
    ids,
    side_by_side,
    task,
    training,
)

TOKEN = "correct-horse-battery-staple"


def local(scene: Scene, **headers: str) -> TestClient:
    """A client on this machine."""
    app = build_app(scene.sources(), host="127.0.0.1", token=None)
    return TestClient(app, base_url="http://127.0.0.1:8080", headers=headers)


def remote(scene: Scene, **headers: str) -> TestClient:
    """A client on the network, which needs a token."""
    app = build_app(scene.sources(), host="0.0.0.0", token=TOKEN)
    return TestClient(app, base_url="http://worker.example:8080", headers=headers)


PATHS = [
    "/",
    "/metrics",
    "/api/status",
    "/api/configuration",
    "/page.js",
    "/previews/2/0/after.png",
]


# --- health ------------------------------------------------------------------------------


def test_a_worker_that_can_take_tasks_is_ready_and_says_why() -> None:
    client = local(idle())
    response = client.get("/health/ready")
    assert response.status_code == 200
    checks = {"Queue": True, "Base model": True, "Disk": True}
    assert response.json() == {"ready": True, "checks": checks}
    status = client.get("/api/status").json()
    assert {check["name"]: check["reason"] for check in status["checks"]} == {
        "Queue": "rabbitmq:5672 responds",
        "Base model": "stable-diffusion-v1-5",
        "Disk": "51 GB free in /var/lib/style-trainer",
    }


def test_a_worker_that_cannot_take_tasks_is_alive_and_not_ready() -> None:
    client = local(failed())
    assert client.get("/health/live").status_code == 200
    response = client.get("/health/ready")
    assert response.status_code == 503
    broken = {name for name, ok in response.json()["checks"].items() if not ok}
    assert broken == {"Queue", "Disk"}


def test_without_a_token_the_failing_check_is_named_without_the_reason() -> None:
    response = remote(failed()).get("/health/ready")
    assert response.status_code == 503
    assert set(response.json()["checks"]) == {"Queue", "Base model", "Disk"}
    for detail in ("rabbitmq", "/var/lib", "GB", "s3://"):
        assert detail not in response.text


def test_a_check_that_raises_is_not_ready_and_breaks_nothing() -> None:
    def look() -> tuple[bool, str]:
        raise OSError("no such folder")

    scene = idle()
    sources = replace(scene.sources(), checks={"Disk": look})
    client = TestClient(
        build_app(sources, host="127.0.0.1", token=None), base_url="http://localhost"
    )
    response = client.get("/health/ready")
    assert response.status_code == 503
    assert response.json()["checks"] == {"Disk": False}
    (check,) = client.get("/api/status").json()["checks"]
    assert check["reason"] == "OSError: no such folder"


# --- what is shown -----------------------------------------------------------------------


def test_the_status_has_everything_the_page_shows() -> None:
    status = local(training()).get("/api/status").json()
    assert set(status) >= {"worker", "job", "recent", "previews", "gpus", "queues", "checks"}
    assert status["gpus"][0]["name"] == "NVIDIA GeForce RTX 4090"
    assert status["queues"]["depths"]["model_training"] == 3


def test_metrics_are_those_of_the_registry_and_can_be_parsed() -> None:
    response = local(training()).get("/metrics")
    assert response.headers["Content-Type"].startswith("text/plain")
    names = {family.name for family in text_string_to_metric_families(response.text)}
    assert {"style_trainer_jobs", "style_trainer_gpu_memory_used_bytes"} <= names


def test_previews_are_images_with_descriptive_urls() -> None:
    scene = training()
    client = local(scene)
    pairs = client.get("/api/status").json()["previews"]["pairs"]
    assert pairs[0]["prompt"] == "a lighthouse on a cliff, mystyle"
    for pair in pairs:
        for when in ("before", "after"):
            image = client.get(pair[when])
            assert image.status_code == 200
            assert image.headers["Content-Type"] == "image/png"
            assert image.content.startswith(b"\x89PNG")
    old = pairs[0]["after"]
    scene.start(50)
    scene.complete(50)
    assert client.get(old).status_code == 404, "an old address never shows another image"


def test_previews_of_the_current_run_are_shown_as_they_come() -> None:
    scene = training()
    scene.draw(42, 120, finished=False)
    client = local(scene)
    previews = client.get("/api/status").json()["previews"]
    assert (previews["style_id"], previews["epoch"]) == (42, 120)
    assert {pair["before"] for pair in previews["pairs"]} == {None}
    assert client.get(previews["pairs"][2]["after"]).content == a_png(2, True)


def test_previews_are_those_of_the_requested_job() -> None:
    client = local(side_by_side())

    def previews(style_id: int) -> dict[str, Any]:
        status = client.get("/api/status", params={"task": task(style_id).task_id}).json()
        assert status["job"]["style_id"] == style_id
        found: dict[str, Any] = status["previews"]
        return found

    assert (previews(42)["style_id"], previews(42)["epoch"]) == (42, 120)
    assert (previews(43)["style_id"], previews(43)["epoch"]) == (43, 50)
    assert previews(44)["style_id"] == 41, "it has none yet: those of the last finished style"
    for style_id in (42, 43):
        for pair in previews(style_id)["pairs"]:
            assert client.get(pair["after"]).status_code == 200
    assert client.get("/api/status").json()["previews"]["style_id"] == 42


def test_the_cache_separates_concurrent_runs_and_keeps_few() -> None:
    preview_cache = PreviewCache()

    def draw(style_id: int, epoch: int) -> None:
        previews = (Preview(f"style {style_id}", 0, b"%d" % style_id),)
        preview_cache(
            PreviewsDrawn(**ids(style_id), epoch=epoch, previews=previews, with_lora=True)
        )

    def images() -> int:
        found = (preview_cache.image(number, 0, "after") for number in range(100))
        return sum(image is not None for image in found)

    styles = (1, 2, 3)
    for style_id, epoch in zip([*styles, *styles], range(6), strict=True):
        draw(style_id, epoch)
    for style_id in styles:
        found = preview_cache.shown(style_id)
        assert found is not None
        assert found["pairs"][0]["prompt"] == f"style {style_id}"
        number = int(found["pairs"][0]["after"].split("/")[2])
        assert preview_cache.image(number, 0, "after") == b"%d" % style_id
    assert images() == 3
    for style_id in styles:
        preview_cache(settled(task(style_id), Ack()))
    assert images() == 1, "of what is over only the last"
    assert (preview_cache.shown() or {})["style_id"] == 3
    preview_cache(settled(task(4), Ack()))
    assert (preview_cache.shown(4) or {})["style_id"] == 3, (
        "a run without images leaves those there are"
    )


def test_previews_of_a_job_are_cached() -> None:
    world, preview_cache = World(), PreviewCache()
    assert world.worker(events=preview_cache)(a_task(), StopSignal()) == Ack()
    shown = preview_cache.shown()
    assert shown is not None
    assert (shown["style_id"], shown["epoch"]) == (7, 25)
    for pair in shown["pairs"]:
        assert pair["before"]
        assert pair["after"]


@pytest.mark.parametrize(
    "path",
    [
        "/previews/2/99/after.png",
        "/previews/2/-1/after.png",
        "/previews/2/0/x.png",
        f"/previews/{'9' * 5000}/0/after.png",
    ],
)
def test_a_missing_preview_is_404(path: str) -> None:
    assert local(training()).get(path).status_code == 404


def test_secrets_are_redacted_everywhere() -> None:
    client = local(failed())
    for path in ("/api/status", "/api/configuration", "/health/ready", "/metrics", "/"):
        assert SECRET not in client.get(path).text, path
    assert "[redacted]" in client.get("/api/status").text


def test_every_route_is_read_only() -> None:
    client = local(idle())
    for path in PATHS:
        for method in ("POST", "PUT", "DELETE", "PATCH"):
            assert client.request(method, path).status_code in (404, 405), (method, path)


@pytest.mark.parametrize("path", [*PATHS, "/health/live", "/no/such/page"])
def test_every_response_has_the_security_headers(path: str) -> None:
    for client in (local(training()), remote(training())):
        headers = client.get(path).headers
        policy = headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'")
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "no-referrer"


def test_no_file_of_the_page_names_another_host() -> None:
    client = local(idle())
    for path in ("/", "/page.css", "/page.js", "/dom.js", "/jobs.js", "/chart.js", "/icon.svg"):
        found = re.findall(r"https?://[^\s\"'<>)]+", client.get(path).text)
        assert set(found) <= {"http://www.w3.org/2000/svg"}, (path, found)


# --- who may see it ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "", "192.168.1.5:8080"]
)
def test_an_unknown_host_header_is_rejected(host: str) -> None:
    client = local(idle())
    for path in (*PATHS, "/health/ready"):
        response = client.get(path, headers={"Host": host})
        assert response.status_code == 421
        assert "atelier-1" not in response.text


@pytest.mark.parametrize("host", ["localhost", "localhost:9", "127.0.0.1:8080", "[::1]:8080"])
def test_host_headers_of_this_machine_are_accepted(host: str) -> None:
    assert local(idle()).get("/", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("path", PATHS)
def test_the_network_sees_nothing_without_the_token(path: str) -> None:
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Cookie": f"{COOKIE}=wrong"}):
        response = remote(training()).get(path, headers=headers)
        assert response.status_code == 401
        for fact in ("atelier-1", "550e8400", "lighthouse", "style_trainer_"):
            assert fact not in response.text.replace(COOKIE, "")


@pytest.mark.parametrize("host", ["worker.example/health/live?", "worker.example/page.css#"])
def test_a_path_in_the_host_header_bypasses_nothing(host: str) -> None:
    for path in PATHS:
        assert remote(training()).get(path, headers={"Host": host}).status_code == 401, path


def test_health_checks_need_no_token() -> None:
    client = remote(idle())
    assert client.get("/health/live").status_code == 200
    assert client.get("/health/ready").status_code == 200


def test_a_program_sends_the_token_in_a_header() -> None:
    client = remote(training(), Authorization=f"Bearer {TOKEN}")
    assert client.get("/metrics").status_code == 200
    assert client.get("/api/status").json()["worker"]["name"] == "atelier-1"


def test_a_token_in_the_url_signs_in_and_is_removed_from_the_url() -> None:
    client = remote(training())
    response = client.get("/", params={"token": TOKEN}, follow_redirects=False)
    assert response.status_code == 303
    assert response.headers["Location"] == "/"
    cookie = response.headers["Set-Cookie"]
    assert TOKEN not in cookie
    assert "HttpOnly" in cookie
    assert "samesite=lax" in cookie.lower()
    assert client.get("/api/status").status_code == 200


def test_a_token_in_the_form_signs_in() -> None:
    client = remote(training())
    assert 'type="password"' in client.get("/").text
    wrong = client.post("/login", data={"token": "wrong"})
    assert wrong.status_code == 401
    assert "Wrong token." in wrong.text
    right = client.post("/login", data={"token": TOKEN})
    assert right.status_code == 200
    assert "<main" in right.text


@pytest.mark.parametrize("token", ["", "wrong", "ü", "x" * 10_000])
def test_a_wrong_token_is_never_accepted(token: str) -> None:
    client = remote(idle())
    assert client.get("/", params={"token": token}).status_code == 401
    assert client.post("/login", data={"token": token}).status_code == 401
    assert client.post("/login", content=b"\xff\xfe" * 10).status_code == 401
    assert client.get("/metrics", headers={"Cookie": f"{COOKIE}={TOKEN}"}).status_code == 401


def test_a_token_that_is_set_is_required_on_loopback_too() -> None:
    app = build_app(idle().sources(), host="127.0.0.1", token=TOKEN)
    client = TestClient(app, base_url="http://127.0.0.1")
    assert client.get("/metrics").status_code == 401


@pytest.mark.parametrize(
    ("host", "token", "message"),
    [
        ("0.0.0.0", None, "STATUS_HOST=0.0.0.0 is open to the network; give a token"),
        ("::", None, "set STATUS_HOST=127.0.0.1"),
        ("192.168.1.5", None, "set STATUS_HOST=127.0.0.1"),
        ("worker.example", None, "set STATUS_HOST=127.0.0.1"),
        ("127.0.0.1", "short", "give 16 or more"),
        ("127.0.0.1", f"{TOKEN}\n", "ASCII characters without spaces"),
        ("127.0.0.1", "schlüssel-der-seite", "ASCII characters without spaces"),
    ],
)
def test_a_public_page_without_a_strong_token_is_rejected_in_one_line(
    host: str, token: str | None, message: str
) -> None:
    with pytest.raises(InvalidBinding) as rejected:
        build_app(idle().sources(), host=host, token=token)
    assert message in str(rejected.value)
    assert "\n" not in str(rejected.value)


def test_a_loopback_page_needs_no_token() -> None:
    for host in ("localhost", "LOCALHOST", "127.0.0.1", "::1", "[::1]"):
        check_binding(host, None)


# --- the server --------------------------------------------------------------------------


@pytest.fixture
def url() -> Iterator[str]:
    server = StatusServer(
        build_app(training().sources(), host="127.0.0.1", token=None), "127.0.0.1", 0
    )
    with server as address:
        yield address


def fetch(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=10) as response:
        return json.load(response)


def test_a_real_server_answers_from_its_own_thread(url: str) -> None:
    assert fetch(f"{url}/api/status")["job"]["style_id"] == 42
    assert fetch(f"{url}/health/ready")["ready"] is True


def test_a_second_worker_on_a_machine_gets_another_port(url: str) -> None:
    taken = int(url.rpartition(":")[2])
    app = build_app(idle().sources(), host="127.0.0.1", token=None)
    with StatusServer(app, "127.0.0.1", taken) as other:
        assert other != url
        assert fetch(f"{other}/api/status")["job"] is None
        assert fetch(f"{url}/api/status")["job"]["style_id"] == 42


def test_an_address_others_connect_to_must_be_free() -> None:
    with socket.create_server(("0.0.0.0", 0)) as taken:
        port = taken.getsockname()[1]
        app = build_app(idle().sources(), host="0.0.0.0", token=TOKEN)
        with pytest.raises(AddressTaken, match=rf"0\.0\.0\.0:{port}: "):
            StatusServer(app, "0.0.0.0", port).start()


def test_a_stopped_server_accepts_no_connection(url: str) -> None:
    server = StatusServer(
        build_app(idle().sources(), host="127.0.0.1", token=None), "127.0.0.1", 0
    )
    address = server.start()
    server.stop()
    with pytest.raises(OSError, match="refused"):
        fetch(address)
