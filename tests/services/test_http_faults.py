"""The faulty proxy's rules: which request gets which fault."""

from __future__ import annotations

from tests.services.http_faults import Fault, Plan, Rule


def faults(
    plan: Plan, count: int, method: str = "GET", target: str = "/b/a"
) -> list[Fault | None]:
    met = [plan.choose(method, target) for _ in range(count)]
    return [None if rule is None else rule.fault for rule in met]


def test_the_same_seed_gives_the_same_faults_and_another_seed_others() -> None:
    rules = [Rule(fault="hang", probability=0.2), Rule(fault="cut", probability=0.3)]
    first = faults(Plan(rules, seed=1), 200)
    assert faults(Plan(rules, seed=1), 200) == first
    assert faults(Plan(rules, seed=2), 200) != first
    assert 20 <= first.count("hang") <= 60
    assert 20 <= first.count("cut") <= 80


def test_a_rule_skips_and_repeats_as_configured() -> None:
    plan = Plan([Rule(fault="hang", skip=2, times=1), Rule(fault="cut", skip=3, times=2)])
    assert faults(plan, 8) == [None, None, "hang", None, "cut", "cut", None, None]


def test_a_rule_applies_only_to_matching_requests() -> None:
    plan = Plan([Rule(fault="cut", method="PUT|POST", target="uploadId=")])
    assert faults(plan, 1, "PUT", "/b/a?uploadId=1") == ["cut"]
    assert faults(plan, 1, "PUT", "/b/a") == [None]
    assert faults(plan, 1, "GET", "/b/a?uploadId=1") == [None]


def test_a_single_client_can_be_disconnected() -> None:
    plan = Plan([Rule(fault="reset_before", sender="key-of-slot-1")])
    assert plan.choose("GET", "/a", "AWS4-HMAC-SHA256 Credential=key-of-slot-1/x") is not None
    assert plan.choose("GET", "/a", "AWS4-HMAC-SHA256 Credential=key-of-slot-2/x") is None
    assert plan.choose("GET", "/a") is None
