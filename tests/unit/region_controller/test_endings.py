from __future__ import annotations

from protocol.instances import InstanceView, ServiceRef, State
from protocol.problems import BuildFailed, NoCapacity, Problem, StartFailed
from region_controller.endings import KEPT_S, LISTED_S, MAX_KEPT, Ending, Endings, failed_start
from region_controller.leases import Held


def held(instance: str) -> Held:
    return Held(instance=instance, digest="d", service_id="svc", service_name="service", mem=1, host="", agent="a")


def failed(endings: Endings, instance: str, problem: Problem, now: float) -> None:
    ending = failed_start(held(instance), "eu", problem, now)
    assert ending is not None
    endings.keep(ending)


def ended(instance: str, at: float, reason: str = "expired") -> Ending:
    service = ServiceRef("d", "svc", "service")
    view = InstanceView(
        instance=instance, service=service, state=State.REMOVED, region="eu", agent="a", host="", reason=reason
    )
    return Ending(view, at)


def test_a_failed_start_is_listed_for_a_while_with_its_reason() -> None:
    endings = Endings()
    failed(endings, "one", StartFailed("no", reason="not-ready", log=["hello"]), 0)
    failed(endings, "two", BuildFailed("no", log="nonsense from the wire"), 1)
    endings.keep(ended("ran", 2))
    assert [(v.instance, v.reason, v.log) for v in endings.failed_starts(LISTED_S)] == [
        ("one", "not-ready", ("hello",)),
        ("two", "build-failed", ()),
    ]
    assert endings.find("one", LISTED_S + 0.5) is None
    assert endings.find("two", LISTED_S + 0.5) is not None
    endings.dismiss("two")
    assert endings.find("two", LISTED_S) is None


def test_what_was_refused_is_no_failed_start() -> None:
    assert failed_start(held("refused"), "eu", NoCapacity("full"), 0) is None


def test_an_end_is_told_with_its_reason_for_a_day() -> None:
    endings = Endings()
    endings.keep(ended("one", 100.0, "stopped-by-operator"))
    assert endings.failed_starts(100.0) == []
    ending = endings.find("one", 100.0 + KEPT_S)
    assert ending is not None
    problem = ending.problem(400.0)
    assert (problem.status, problem.extra["reason"]) == (410, "stopped-by-operator")
    assert problem.detail == "instance one of svc ended 5 min ago: stopped-by-operator"
    assert endings.find("one", 101.0 + KEPT_S) is None


def test_what_is_kept_is_bounded_and_the_oldest_makes_room() -> None:
    endings = Endings()
    for number in range(MAX_KEPT):
        assert endings.keep(ended(str(number), float(number))) == []
    assert endings.keep(ended("more", MAX_KEPT)) == ["0"]
    assert endings.keep(ended("much later", 3.0 + KEPT_S)) == ["1", "2"]
    again = Endings()
    again.restore([ended("b", 2.0), ended("a", 1.0)])
    assert again.find("a", 2.0) is not None
