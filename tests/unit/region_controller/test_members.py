from __future__ import annotations

from typing import Any

import msgspec
import pytest

from protocol.instances import InstanceReport, State
from protocol.link import Hello, Resources
from region_controller.members import FORGET_AFTER_S, Members


def a_hello(*instances: InstanceReport, node: str = "ann", free: int = 1000) -> Hello:
    return Hello(
        version=1,
        node=node,
        mesh="m",
        region="r",
        host="10.0.0.1",
        labels={},
        resources=Resources(1000, free),
        instances=instances,
    )


def a_report(instance: str = "i1", state: State = State.RUNNING, **changes: Any) -> InstanceReport:
    report = InstanceReport(
        instance=instance, digest="d", service_id="s", service_name="n", state=state, mem=300, host="10.0.0.1"
    )
    return msgspec.structs.replace(report, **changes)


def free(members: Members) -> int:
    return members.agents(0.0, lambda _: "")[0].memory_free


def test_a_reservation_holds_until_a_heartbeat_counts_the_instance() -> None:
    members = Members()
    members.hello(a_hello(), 0)
    members.reserve("ann", "i1", 300)
    assert free(members) == 700
    members.heartbeat("ann", Resources(1000, 1000), 1)
    assert free(members) == 700, "sent before the agent knew of the start"
    members.changed("ann", a_report(state=State.STARTING), 2)
    assert free(members) == 700, "announced, but counted once only"
    members.heartbeat("ann", Resources(1000, 700), 3)
    assert free(members) == 700
    members.changed("ann", a_report(state=State.RUNNING), 4)
    assert free(members) == 700


def test_reserving_more_than_is_free_is_refused() -> None:
    members = Members()
    members.hello(a_hello(), 0)
    members.reserve("ann", "i1", 600)
    with pytest.raises(ValueError, match="400 MB free"):
        members.reserve("ann", "i2", 401)
    members.release("ann", "i1")
    members.reserve("ann", "i2", 1000)
    assert free(members) == 0


def test_what_ended_frees_its_memory_at_once_but_only_once() -> None:
    members = Members()
    members.hello(a_hello(a_report(), free=700), 0)
    members.changed("ann", a_report(state=State.STOPPED), 1)
    assert free(members) == 1000
    members.changed("ann", a_report(state=State.REMOVED), 2)
    assert free(members) == 1000
    members.heartbeat("ann", Resources(1000, 1000), 3)
    assert free(members) == 1000
    assert members.find("i1") is None


def test_the_lesser_count_is_believed() -> None:
    members = Members()
    members.hello(a_hello(a_report(), free=1000), 0)
    assert free(members) == 700, "the agent forgot to count what it runs"
    members.heartbeat("ann", Resources(1000, 100), 1)
    assert free(members) == 100, "the agent runs what we do not know"


def test_silence_makes_an_agent_suspect_and_a_dropped_link_makes_its_instances_unknown() -> None:
    members = Members()
    members.hello(a_hello(a_report()), 0)
    agent = members.agents(7.0, lambda _: "")[0]
    assert agent.silent_s is not None
    assert agent.silent_s > agent.suspect_s
    members.heard("ann", 7)
    assert members.agents(7.0, lambda _: "")[0].silent_s == 0
    members.lost("ann", 8)
    assert members.agents(8.0, lambda _: "")[0].silent_s is None
    assert members.find("i1") == ("ann", a_report(state=State.UNKNOWN, reason="the agent's link is down"))
    assert members.capacity() == (0, 0, 0)
    assert members.views(8) == []


def test_hello_brings_instances_back_and_names_the_missing() -> None:
    members = Members()
    members.hello(a_hello(a_report("i1"), a_report("i2")), 0)
    members.lost("ann", 1)
    assert members.hello(a_hello(a_report("i2")), 2) == ["i1"]
    assert members.find("i2") == ("ann", a_report("i2"))


def test_expected_after_a_restart_is_unknown_until_hello() -> None:
    members = Members()
    members.expected("ann", [a_report("i1"), a_report("i2")], 0)
    found = members.find("i1")
    assert found is not None
    assert found[1].state is State.UNKNOWN
    assert members.agents(0, lambda _: "") == []
    assert members.hello(a_hello(a_report("i1")), 1) == ["i2"]


def test_an_agent_gone_for_long_is_forgotten_with_its_instances() -> None:
    members = Members()
    members.hello(a_hello(a_report()), 0)
    assert members.sweep(10 * FORGET_AFTER_S) == [], "a linked agent stays"
    members.lost("ann", 1)
    assert members.sweep(FORGET_AFTER_S) == []
    assert members.sweep(FORGET_AFTER_S + 2) == ["i1"]
    assert members.find("i1") is None


def test_news_of_an_unknown_agent_changes_nothing() -> None:
    members = Members()
    members.changed("bob", a_report(), 0)
    members.heartbeat("bob", Resources(1, 1), 0)
    members.lost("bob", 0)
    members.release("bob", "i1")
    assert members.instances() == []


def test_an_instance_of_an_engine_that_is_away_keeps_its_memory() -> None:
    members = Members()
    members.hello(a_hello(a_report(), free=700), 0)
    members.changed("ann", a_report(state=State.UNKNOWN, reason="engine-away"), 1)
    assert free(members) == 700


def test_an_agent_has_no_say_in_another_agent_s_instances() -> None:
    members = Members()
    members.hello(a_hello(a_report("i1"), node="ann"), 0)
    members.hello(a_hello(a_report("i1"), node="bob"), 1)
    assert [node for node, _ in members.instances()] == ["ann"]
    assert not members.changed("bob", a_report("i1", State.REMOVED), 2)
    assert members.find("i1") is not None
    members.reserve("ann", "i2", 100)
    assert not members.changed("bob", a_report("i2", State.RUNNING), 3)
    assert members.changed("ann", a_report("i2", State.RUNNING), 3)
