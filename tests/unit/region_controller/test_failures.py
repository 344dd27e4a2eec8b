from __future__ import annotations

from protocol.problems import BuildFailed, NoCapacity, StartFailed
from region_controller.failures import KEPT_S, MAX_KEPT, Failures
from region_controller.leases import Held


def held(instance: str) -> Held:
    return Held(instance=instance, digest="d", service_id="svc", service_name="service", mem=1, host="", agent="a")


def test_a_failed_start_is_kept_for_a_while_with_its_reason() -> None:
    failures = Failures()
    failures.keep(held("one"), "eu", StartFailed("no", reason="not-ready", log=["hello"]), 0)
    failures.keep(held("two"), "eu", BuildFailed("no", log="nonsense from the wire"), 1)
    assert [(v.instance, v.reason, v.log) for v in failures.views(KEPT_S)] == [
        ("one", "not-ready", ("hello",)),
        ("two", "build-failed", ()),
    ]
    assert failures.find("one", KEPT_S + 0.5) is None
    assert failures.find("two", KEPT_S + 0.5) is not None


def test_what_was_refused_is_not_kept_and_what_is_kept_is_bounded() -> None:
    failures = Failures()
    failures.keep(held("refused"), "eu", NoCapacity("full"), 0)
    assert failures.views(0) == []
    for number in range(MAX_KEPT + 1):
        failures.keep(held(str(number)), "eu", StartFailed("no"), number)
    assert len(failures.views(0)) == MAX_KEPT
    assert failures.find("0", 0) is None
    failures.dismiss("1")
    assert failures.find("1", 0) is None
