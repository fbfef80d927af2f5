"""The routes: health, metrics, status as JSON, previews, and the page."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from typing import Any, TypeAlias

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from adapters.common.gpu_reading import GpuReading
from adapters.status_page.auth import AuthMiddleware
from adapters.status_page.previews import PreviewCache
from adapters.status_page.state import WorkerState

Check: TypeAlias = "Callable[[], tuple[bool, str]]"
"""One condition for taking tasks: whether it is met, and a text for the operator. Runs at every
request of the page, so it must be fast."""


@dataclass(frozen=True, kw_only=True)
class Sources:
    """Data sources of the page. Each may be called from any thread."""

    worker_state: WorkerState
    previews: PreviewCache
    registry: CollectorRegistry
    checks: Mapping[str, Check]
    """By name."""
    gpus: Callable[[], Sequence[GpuReading]]
    queues: Callable[[], dict[str, Any]]
    """``depths`` by queue; ``trouble``, why counting failed; ``age`` in seconds."""
    configuration: Sequence[dict[str, str]]
    """Every setting's name, value and meaning, without secrets."""
    redact: Callable[[Any], Any]
    """Removes secrets from JSON values, in case a message contains one."""


def build_app(sources: Sources, *, host: str, token: str | None) -> Starlette:
    """Build the app with access control.

    Raises:
        InvalidBinding: ``host`` is open to the network without a token.
    """

    # On the event loop: the threads for other requests may all be busy.
    async def live(_request: Request) -> Response:
        return PlainTextResponse("live\n")

    def ready(_request: Request) -> Response:
        # Names only: the reasons contain paths and addresses, which require the token.
        checks = {name: _run(check)[0] for name, check in sources.checks.items()}
        fine = all(checks.values())
        return JSONResponse({"ready": fine, "checks": checks}, status_code=200 if fine else 503)

    def metrics(request: Request) -> Response:
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        return Response(encode(sources.registry), headers={"Content-Type": content_type})

    def status(request: Request) -> Response:
        shown = sources.worker_state.snapshot(request.query_params.get("task"))
        job = shown["job"]
        values = {
            **shown,
            "previews": sources.previews.shown(None if job is None else job["style_id"]),
            "gpus": [asdict(card) for card in sources.gpus()],
            "queues": sources.queues(),
            "checks": [
                {"name": name, "ok": ok, "reason": reason}
                for name, check in sources.checks.items()
                for ok, reason in [_run(check)]
            ],
        }
        return JSONResponse(_finite(sources.redact(values)))

    def configuration(_request: Request) -> Response:
        return JSONResponse(sources.redact(list(sources.configuration)))

    def preview(request: Request) -> Response:
        number, place, when = (request.path_params[name] for name in ("number", "place", "when"))
        found = _NUMBER.fullmatch(number) and _NUMBER.fullmatch(place)
        png = sources.previews.image(int(number), int(place), when) if found else None
        if png is None:
            return PlainTextResponse("no such preview\n", status_code=404)
        # A URL names the same image only while this process lives.
        return Response(
            png, media_type="image/png", headers={"Cache-Control": "private, no-cache"}
        )

    routes = [
        Route("/health/live", live),
        Route("/health/ready", ready),
        Route("/metrics", metrics),
        Route("/api/status", status),
        Route("/api/configuration", configuration),
        Route("/previews/{number}/{place}/{when}.png", preview),
        *(_file_route(path, name, kind) for path, name, kind in _FILES),
    ]
    guard = Middleware(
        AuthMiddleware, host=host, token=token, login_page=_read("login.html").decode()
    )
    app = Starlette(routes=routes, middleware=[guard])
    app.build_middleware_stack()  # raises InvalidBinding now, not at the first request
    return app


_NUMBER = re.compile(r"[0-9]{1,18}")
"""Python converts longer texts slowly, and those of more than 4,300 digits not at all."""
_SCRIPTS = ("page.js", "dom.js", "jobs.js", "chart.js")
_FILES = (
    ("/", "page.html", "text/html; charset=utf-8"),
    ("/page.css", "page.css", "text/css; charset=utf-8"),
    *((f"/{name}", name, "text/javascript; charset=utf-8") for name in _SCRIPTS),
    ("/icon.svg", "icon.svg", "image/svg+xml"),
)


def _run(check: Check) -> tuple[bool, str]:
    """Run a check. One that raises counts as not passed."""
    try:
        return check()
    except Exception as error:
        return False, f"{type(error).__name__}: {error}"


def _file_route(path: str, name: str, content_type: str) -> Route:
    content = _read(name)

    def serve(_request: Request) -> Response:
        return Response(content, headers={"Content-Type": content_type})

    return Route(path, serve)


def _read(name: str) -> bytes:
    return files("adapters.status_page").joinpath(name).read_bytes()


def _finite(value: Any) -> Any:
    """Replace NaN, which JSON does not have, with null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return value
