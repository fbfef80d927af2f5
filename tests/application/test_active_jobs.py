from __future__ import annotations

import threading

from application.active_jobs import ActiveJobs


def elsewhere(hands: ActiveJobs[str], task_id: str | None) -> str | None:
    """What a put-down returns in another thread."""
    found: list[str | None] = []
    thread = threading.Thread(target=lambda: found.append(hands.put_down(task_id)))
    thread.start()
    thread.join()
    return found[0]


def test_jobs_are_in_hand_from_taking_up_to_putting_down_in_their_order() -> None:
    hands: ActiveJobs[str] = ActiveJobs()
    for task_id in ("a", "b", "c"):
        assert hands.take_up(task_id, lambda task_id=task_id: f"of {task_id}") == f"of {task_id}"
    assert hands.hear("b", lambda: "another") == "of b"
    assert hands.put_down("b") == "of b"
    assert list(hands) == ["of a", "of c"]
    assert (hands.get("a"), hands.get("b"), len(hands)) == ("of a", None, 2)


def test_a_task_that_two_threads_look_at_is_in_hand_until_the_last_puts_it_down() -> None:
    hands: ActiveJobs[str] = ActiveJobs()
    assert hands.take_up("a", lambda: "first") == "first"
    assert hands.take_up("a", lambda: "second") == "first"
    assert elsewhere(hands, "a") is None
    assert list(hands) == ["first"]
    assert hands.put_down("a") == "first"
    assert not len(hands)


def test_the_job_of_a_refused_message_goes_with_the_thread_that_heard_of_it() -> None:
    hands: ActiveJobs[str] = ActiveJobs()
    hands.take_up("a", lambda: "a task")
    hands.hear("invalid-1", lambda: "refused")
    assert elsewhere(hands, None) is None, "another thread's message"
    assert hands.put_down(None) == "refused"
    assert hands.put_down(None) is None
    assert list(hands) == ["a task"]


def test_a_job_that_is_over_is_not_put_down_again() -> None:
    hands: ActiveJobs[str] = ActiveJobs()
    hands.take_up("a", lambda: "a")
    hands.end("a")
    hands.end("never heard of")
    assert hands.put_down("a") is None


def test_a_job_that_was_interrupted_elsewhere_and_goes_on_here_is_put_down_once() -> None:
    hands: ActiveJobs[str] = ActiveJobs()
    hands.take_up("a", lambda: "as its lost worker left it")
    hands.end("a")
    hands.hear("a", lambda: "resumed")
    assert hands.put_down("a") == "resumed"
    hands.take_up("b", lambda: "the next")
    assert hands.put_down(None) is None
    assert list(hands) == ["the next"]
