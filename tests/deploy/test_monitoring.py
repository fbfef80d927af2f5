"""The dashboard and the alerts use only metrics that a worker exposes."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from adapters.memory import ManualClock, MemoryQueue
from adapters.metrics.queue import DepthGauges
from adapters.spool import SpoolQueue
from adapters.status_page.app import build_app
from adapters.status_page.server import StatusServer
from domain.failure import FailureCode
from tests.deploy.files import DEPLOY
from tests.services.missing import skip_or_fail
from tests.services.ports import free_ports
from tests.services.status_scenes import Scene, side_by_side
from tests.services.waiting import eventually

ALERTS = DEPLOY / "prometheus" / "alerts.yml"
DASHBOARD = json.loads((DEPLOY / "grafana" / "dashboard.json").read_text(encoding="utf-8"))

ADDED_BY_PROMETHEUS = {"job", "instance"}
OPEN_LABELS = {"instance", "job", "queue", "worker", "version", "gpu", "model"}
"""Labels whose values depend on the running system."""


BROKERS_OWN = {"rabbitmq_queue_messages": {"job", "instance", "vhost", "queue"}}
"""RabbitMQ's own metrics that alerts use, with their labels; test_management.py checks
that RabbitMQ exposes them."""


class RabbitNames(MemoryQueue):
    """Metrics of a queue, with the broker's names for them."""

    def depths(self) -> dict[str, int]:
        return {"model_training": 0, "model_training.retry": 0, "model_training.dead": 0}


def a_busy_worker() -> Scene:
    """A worker with a GPU and a queue, in the middle of several jobs."""
    scene = side_by_side()
    DepthGauges(RabbitNames(ManualClock()), scene.metrics, scene.clock.monotonic).poll()
    return scene


def exposed() -> dict[str, dict[str, set[str]]]:
    """Every exposed sample's name, with its labels and their values."""
    text = generate_latest(a_busy_worker().metrics.registry).decode()
    found: dict[str, dict[str, set[str]]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = found.setdefault(sample.name, {name: set() for name in ADDED_BY_PROMETHEUS})
            for name, value in sample.labels.items():
                labels.setdefault(name, set()).add(value)
    return found | {
        metric: {label: set() for label in labels} for metric, labels in BROKERS_OWN.items()
    }


def panels() -> list[dict[str, Any]]:
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def dashboard_queries() -> dict[str, str]:
    """Every panel's queries, as Grafana would send them."""
    return {
        f"{panel['title']} {target['refId']}": target["expr"]
        .replace("$__rate_interval", "1m")
        .replace("$instance", ".*")
        for panel in panels()
        for target in panel["targets"]
    }


def alert_rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load(ALERTS.read_text(encoding="utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


QUERIES = {
    **{f"panel {name}": query for name, query in dashboard_queries().items()},
    **{f"alert {rule['alert']}": rule["expr"] for rule in alert_rules()},
}


def parts(expression: Any) -> Iterator[Any]:
    """An expression and all its subexpressions."""
    yield expression
    for name in ("lhs", "rhs", "expr", "args", "param", "vector_selector"):
        part = getattr(expression, name, None)
        for inner in part if isinstance(part, list) else [part]:
            if inner is not None and not isinstance(inner, str | int | float):
                yield from parts(inner)


def problems(query: str, known: dict[str, dict[str, set[str]]]) -> list[str]:
    """Metrics and labels of the query that do not exist."""
    found, labels = [], set(ADDED_BY_PROMETHEUS)
    expressions = list(parts(promql_parser.parse(query)))
    selectors = [one for one in expressions if isinstance(one, promql_parser.VectorSelector)]
    for selector in selectors:
        if selector.name not in known:
            found.append(f"no metric {selector.name}")
            continue
        labels |= set(known[selector.name])
        for matcher in selector.matchers.matchers:
            if matcher.name not in known[selector.name]:
                found.append(f"{selector.name} has no label {matcher.name}")
            elif matcher.name not in OPEN_LABELS:
                values = known[selector.name][matcher.name]
                wanted = (
                    {matcher.value}
                    if matcher.op in (promql_parser.MatchOp.Equal, promql_parser.MatchOp.NotEqual)
                    else set(matcher.value.split("|"))
                )
                found += [f"{matcher.name} is never {value}" for value in wanted - values]
    for expression in expressions:
        modifier = getattr(expression, "modifier", None)
        matching = getattr(modifier, "matching", None)
        for grouped in (modifier, matching):
            for label in getattr(grouped, "labels", None) or []:
                if label not in labels:
                    found.append(f"no label {label} to group by")
    return found


@pytest.mark.parametrize("name", QUERIES)
def test_every_query_uses_exposed_metrics(name: str) -> None:
    assert problems(QUERIES[name], exposed()) == []


@pytest.mark.parametrize(
    ("query", "problem"),
    [
        ("style_trainer_job_total", "no metric style_trainer_job_total"),
        ('style_trainer_jobs_total{state="x"}', "style_trainer_jobs_total has no label state"),
        ('style_trainer_jobs_total{result="done"}', "result is never done"),
        ('style_trainer_jobs_total{code=~"GPU_OOM|NOPE"}', "code is never NOPE"),
        ("sum by (phase) (style_trainer_jobs_total)", "no label phase to group by"),
        (
            "style_trainer_loss and on (style) style_trainer_steps_total",
            "no label style to group by",
        ),
    ],
)
def test_the_query_check_finds_errors(query: str, problem: str) -> None:
    assert problem in problems(query, exposed())


@pytest.mark.parametrize("title", ["Waiting tasks", "Dead letters"])
def test_a_panel_of_one_queue_finds_it_at_a_broker_and_in_a_spool_folder(
    title: str, tmp_path: Path
) -> None:
    clock = ManualClock()
    spool = SpoolQueue(tmp_path, clock, lambda: "id")
    for queue in (RabbitNames(clock), spool):
        for query in (query for name, query in dashboard_queries().items() if title in name):
            (matcher,) = (
                matcher
                for part in parts(promql_parser.parse(query))
                if isinstance(part, promql_parser.VectorSelector)
                for matcher in part.matchers.matchers
                if matcher.name == "queue"
            )
            wanted = matcher.op == promql_parser.MatchOp.Re
            found = [
                name
                for name in queue.depths()
                if bool(re.fullmatch(matcher.value, name)) is wanted
            ]
            assert len(found) == 1, (query, found)


@pytest.mark.parametrize("panel", panels(), ids=lambda panel: panel["title"])
def test_legends_use_labels_of_the_query_result(panel: dict[str, Any]) -> None:
    known = exposed()
    for target in panel["targets"]:
        wanted = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
        query = target["expr"].replace("$__rate_interval", "1m").replace("$instance", ".*")
        outer = promql_parser.parse(query)
        while isinstance(outer, promql_parser.BinaryExpr):
            outer = outer.lhs
        if isinstance(outer, promql_parser.AggregateExpr):
            left = set(outer.modifier.labels) if outer.modifier else set()
        else:
            names = {
                one.name for one in parts(outer) if isinstance(one, promql_parser.VectorSelector)
            }
            left = {label for name in names if name for label in known[name]}
        assert wanted <= left, target["expr"]


def test_every_metric_of_ours_is_on_the_dashboard_or_in_an_alert() -> None:
    used = " ".join(QUERIES.values())
    unseen = {
        re.sub(r"_(bucket|count|sum|created)$", "", name)
        for name in exposed()
        if name.startswith("style_trainer_")
    }
    unseen = {name for name in unseen if name not in used}
    assert not unseen


def test_the_dashboard_is_complete() -> None:
    numbers = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(numbers)) == len(numbers)
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert at["x"] + at["w"] <= 24, panel["title"]
        assert not taken & cells, f"{panel['title']} covers another panel"
        taken |= cells
    for panel in panels():
        assert panel["description"], panel["title"]


def test_every_alert_says_what_to_do() -> None:
    for rule in alert_rules():
        assert rule["labels"]["severity"] in {"page", "ticket"}
        assert len(rule["annotations"]["description"]) > 40
        assert rule["annotations"]["summary"]
    codes = {
        code for rule in alert_rules() for code in re.findall(r"[A-Z]+(?:_[A-Z]+)+", rule["expr"])
    }
    assert codes <= set(FailureCode)


# --- with Prometheus itself --------------------------------------------------------------


def tool(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        skip_or_fail(f"waits for {name}: apt-get install prometheus")
    return found


def test_promtool_accepts_the_rules_and_their_tests_pass() -> None:
    promtool = tool("promtool")
    for arguments in (["check", "rules", "alerts.yml"], ["test", "rules", "alerts_test.yml"]):
        done = subprocess.run(
            [promtool, *arguments],
            cwd=ALERTS.parent,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def prometheus(tmp_path: Path) -> Iterator[str]:
    """A Prometheus that scrapes a worker with its token, as in production."""
    program, token = tool("prometheus"), "correct-horse-battery-staple"
    app = build_app(a_busy_worker().sources(), host="127.0.0.1", token=token)
    with StatusServer(app, "127.0.0.1", 0) as worker:
        scrape = {
            "job_name": "style-trainer",
            "scrape_interval": "1s",
            "authorization": {"credentials": token},
            "static_configs": [{"targets": [worker.removeprefix("http://")]}],
        }
        config = tmp_path / "prometheus.yml"
        config.write_text(
            yaml.safe_dump(
                {
                    "global": {"evaluation_interval": "1s"},
                    "scrape_configs": [scrape],
                    "rule_files": [str(ALERTS)],
                }
            )
        )
        (port,) = free_ports(1)
        process = subprocess.Popen(
            [
                program,
                f"--config.file={config}",
                f"--storage.tsdb.path={tmp_path / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
                "--log.level=error",
            ],
            env={**os.environ, "GOMAXPROCS": "1"},
        )
        url = f"http://127.0.0.1:{port}"
        try:
            eventually(lambda: enough(url), running=process)
            yield url
        finally:
            process.terminate()
            process.wait(timeout=20)


def evaluate(url: str, query: str) -> list[Any]:
    address = f"{url}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
    with urllib.request.urlopen(address, timeout=10) as response:
        result: list[Any] = json.load(response)["data"]["result"]
    return result


def enough(url: str) -> bool:
    """Whether the worker has been scraped often enough for a rate."""
    try:
        found = evaluate(url, "count_over_time(style_trainer_steps_total[1m])")
    except (urllib.error.URLError, ConnectionError):
        return False
    return bool(found) and float(found[0]["value"][1]) >= 3


@pytest.mark.integration
def test_prometheus_returns_data_for_every_panel(prometheus: str) -> None:
    empty = [
        name for name, query in dashboard_queries().items() if not evaluate(prometheus, query)
    ]
    assert empty == []
    with urllib.request.urlopen(f"{prometheus}/api/v1/rules", timeout=10) as response:
        groups = json.load(response)["data"]["groups"]
    broken = [
        rule["lastError"] for group in groups for rule in group["rules"] if rule.get("lastError")
    ]
    assert broken == []
