"""Progress of a start in another region: bounded, named, and no faster than people read."""

from __future__ import annotations

import pytest

from protocol.instances import Progress
from region_controller import handoff
from region_controller.handoff import MAX_MESSAGE, PROGRESS_EVERY_S, Paced, relayed


def test_a_step_is_named_by_the_region_that_works_and_keeps_its_name_on_the_way() -> None:
    step = relayed(Progress("fetch", "from 2 peers", 5, 10), "eu/de")
    assert step == Progress("fetch", "from 2 peers", 5, 10, "eu/de")
    assert relayed(step, "eu") == step


def test_what_comes_from_the_network_is_bounded() -> None:
    assert relayed(Progress("resolve", "svc"), "eu") is None
    assert relayed(Progress("x" * 10_000), "eu") is None
    step = relayed(Progress("build", "x" * 10_000, -5, -1, "r" * 10_000), "eu")
    assert step is not None
    assert (len(step.message), len(step.region), step.done, step.total) == (MAX_MESSAGE, MAX_MESSAGE, 0, 0)


def test_each_phase_is_told_at_once_and_then_at_a_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    now, told = [0.0], list[Progress]()
    monkeypatch.setattr(handoff, "loop_time", lambda: now[0])
    tell = Paced(told.append)
    tell(Progress("resolve", "which service is meant is known there"))
    for done in range(100):
        now[0] = done * PROGRESS_EVERY_S / 10
        tell(Progress("fetch", "", done, 100))
    tell(Progress("build", "step", 1, 3))
    assert [step.done for step in told if step.phase == "fetch"] == list(range(0, 100, 10))
    assert told[-1].phase == "build"
