"""Promises of leases, kept by one controller with fake agents over real sockets, and after its restart."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from protocol.instances import StartRequest, State
from protocol.link import Remove, Stop
from protocol.problems import InstanceEnded, UnknownInstance
from region_controller import AliveBounds, Caller
from tests.fake_agent import FakeAgent
from tests.one_region import Site, a_service, node_of, running_site
from tests.waiting import until

OPERATOR = Caller(operator=True)


def an_agent(**options: Any) -> FakeAgent:
    return FakeAgent(node_of("agent"), "eu/de", **options)


def start(site: Site, **request: Any) -> Any:
    return site.controller.start(StartRequest(**{"service": "svc", **request}))


async def test_an_operator_stops_what_others_hold_and_they_read_who_did_it_after_a_restart_too(tmp_path: Path) -> None:
    agent = an_agent()
    async with running_site(tmp_path) as site, agent.linked(site.peer):
        await site.publish(a_service())
        one, _ = await start(site, alive_time=500)
        await start(site, alive_time=900)
        stopped = await site.controller.stop(one.instance, OPERATOR)
        assert (stopped.state, stopped.reason) == (State.STOPPED, "stopped-by-operator")
        assert [c.reason for c in agent.commands if isinstance(c, Stop)] == ["stopped-by-operator"]
    async with running_site(tmp_path) as site, agent.linked(site.peer):
        view = await site.controller.instance(one.instance)
        assert (view.state, view.reason) == (State.STOPPED, "stopped-by-operator")
        back = await site.controller.restart(one.instance, Caller(one.lease.token))
        assert back.state is State.RUNNING, "its holders' leases outlived both"


async def test_every_end_has_a_reason_that_outlives_the_instance_and_the_controller(tmp_path: Path) -> None:
    agent = an_agent()
    ended: dict[str, str] = {}
    async with running_site(tmp_path) as site, agent.linked(site.peer):
        await site.publish(a_service())
        for reason in ("removed-by-operator", "removed-by-client", "exited 1", "ended while its agent was away"):
            answer, _ = await start(site, force_rebuild=True)
            ended[answer.instance] = reason
            if reason == "removed-by-operator":
                await site.controller.remove(answer.instance, OPERATOR)
            elif reason == "removed-by-client":
                await site.controller.remove(answer.instance, Caller(answer.lease.token))
            elif reason == "exited 1":  # failed, kept for its retention, removed with the reason
                await agent.report(answer.instance, state=State.REMOVED, reason=reason)
                del agent.instances[answer.instance]
        assert [c.reason for c in agent.commands if isinstance(c, Remove)] == list(ended.values())[:2]
        await until(lambda: len(site.controller.instances()) == 1)
    agent.instances.clear()
    async with running_site(tmp_path) as site, agent.linked(site.peer):
        for instance, reason in ended.items():
            for ask in (
                site.controller.instance(instance),
                site.controller.stop(instance, Caller("any")),
                site.controller.log(instance, 1, OPERATOR),
            ):
                with pytest.raises(InstanceEnded) as told:
                    await ask
                assert told.value.extra["reason"] == reason
        assert site.controller.instances() == []
        with pytest.raises(UnknownInstance) as unknown:
            await site.controller.instance("never-was")
        assert not isinstance(unknown.value, InstanceEnded)


async def test_the_region_bounds_what_clients_may_ask_for(tmp_path: Path) -> None:
    bounds = AliveBounds(shortest=30, longest=100)
    async with running_site(tmp_path, alive_bounds=bounds) as site, an_agent().linked(site.peer) as agent:
        await site.publish(a_service())

        def lives_s(expires_at: float | None) -> float:
            assert expires_at is not None
            return expires_at - time.time()

        brief, _ = await start(site, alive_time=1)
        assert 29 < lives_s(brief.lease.expires_at) <= 30
        assert "this region lets it live 30 s" in brief.why
        assert (agent.starts[0].alive_time, agent.starts[0].at_most_alive_s) == (30, 100)
        endless, _ = await start(site, alive_time=0)
        assert 99 < lives_s(endless.lease.expires_at) <= 100
        view = await site.controller.alive(brief.instance, Caller(brief.lease.token), 5000)
        assert 99 < lives_s(view.expires_at) <= 101
        plain, _ = await start(site)
        assert "lets it live" not in plain.why


def test_bounds() -> None:
    free, tight = AliveBounds(), AliveBounds(10, 60)
    assert [free.within(s) for s in (0, 1, 9999)] == [0, 1, 9999]
    assert [tight.within(s) for s in (0, 1, 30, 9999)] == [60, 10, 30, 60]
