"""More cold starts than an agent takes: a bounded line, fair turns, honest times, and no work for who has gone."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from protocol.instances import Progress, StartRequest, State
from protocol.problems import BuildFailed, NoCapacity, Overloaded
from tests.fake_agent import FakeAgent
from tests.one_region import Site, a_service, node_of, running_site
from tests.waiting import until

TIGHT = {"starts_per_agent": 1, "max_queued_starts": 2}


def an_agent(**options: Any) -> FakeAgent:
    return FakeAgent(node_of("agent"), "eu/de", **options)


async def published(site: Site, count: int) -> None:
    for number in range(count):
        await site.publish(a_service(f"s{number}", mem=10))


def start(site: Site, service: str, client: str = "", **options: Any) -> asyncio.Task[Any]:
    presence = options.pop("present", lambda: True)
    on_progress = options.pop("on_progress", lambda _: None)
    request = StartRequest(service=service, **options)
    return asyncio.create_task(site.controller.start(request, on_progress, client=client, present=presence))


def order(agent: FakeAgent, services: dict[str, str]) -> list[str]:
    return [services[command.digest] for command in agent.starts]


async def test_turns_are_fair_and_what_does_not_fit_is_refused_at_once_with_a_time(tmp_path: Path) -> None:
    async with running_site(tmp_path, **TIGHT) as site, an_agent().linked(site.peer) as agent:
        await published(site, 6)
        names = {a_service(f"s{n}", mem=10).digest: f"s{n}" for n in range(6)}
        agent.gate.clear()
        steps: list[Progress] = []
        greedy = [start(site, "s0", "greedy")]
        await until(lambda: agent.starts)
        greedy += [start(site, f"s{n}", "greedy", on_progress=steps.append) for n in (1, 2)]
        await until(lambda: site.controller.stats().queued == 2)
        assert any(step.message.startswith("waiting for its turn") for step in steps)
        began = time.perf_counter()
        modest = start(site, "s3", "modest")
        with pytest.raises(Overloaded) as refused:
            await greedy[2]
        assert time.perf_counter() - began < 1.0, "who has the most places loses one, at once"
        assert refused.value.retry_after is not None
        assert refused.value.retry_after >= 1
        agent.gate.set()
        await asyncio.gather(*greedy[:2], modest)
        assert order(agent, names)[0] == "s0"
        assert set(order(agent, names)) == {"s0", "s1", "s3"}
        assert site.controller.stats().overloaded == 1
        again, _ = await start(site, "s2", "greedy")
        assert again.start == "cold", "what was refused is not poisoned"


async def test_who_hangs_up_leaves_the_line_also_with_a_request_key(tmp_path: Path) -> None:
    async with running_site(tmp_path, **TIGHT) as site, an_agent().linked(site.peer) as agent:
        await published(site, 3)
        agent.gate.clear()
        first = start(site, "s0")
        await until(lambda: agent.starts)
        here = [True]
        keyed = start(site, "s1", present=lambda: here[0], request_key="of the phone")
        plain = start(site, "s2")
        await until(lambda: site.controller.stats().queued == 2)
        here[0] = False
        plain.cancel()
        await until(lambda: site.controller.stats().queued == 0)
        with pytest.raises(Overloaded):
            await keyed
        agent.gate.set()
        await first
        assert len(agent.starts) == 1


async def test_a_start_waits_for_room_that_will_come_soon_and_is_told_when_if_it_is_not_soon(tmp_path: Path) -> None:
    async with running_site(tmp_path, queue_wait_s=20.0) as site, an_agent(memory=150).linked(site.peer) as agent:
        await site.publish(a_service("old", mem=100))
        await site.publish(a_service("new", mem=100))
        old, _ = await start(site, "old", alive_time=300)
        with pytest.raises(NoCapacity) as full:
            await start(site, "new")
        assert full.value.retry_after is not None
        assert 290 < full.value.retry_after <= 300, "when the life of what is in its way ends"
        await agent.report(old.instance, expires_at=time.time() + 10)
        steps: list[Progress] = []
        waiting = start(site, "new", on_progress=steps.append)
        await until(lambda: site.controller.stats().queued == 1)
        assert any("waiting until an agent has room" in step.message for step in steps)
        await agent.report(old.instance, state=State.STOPPED, reason="expired")
        answer, _ = await waiting
        assert answer.start == "cold"


async def test_a_failed_start_leaves_the_retries_of_those_who_waited_alone(tmp_path: Path) -> None:
    async with running_site(tmp_path) as site, an_agent().linked(site.peer) as agent:
        await published(site, 1)
        agent.failures.append(BuildFailed("RUN failed"))

        async def insistent(key: str | None) -> str:
            request = StartRequest(service="s0", request_key=key)
            try:
                await site.controller.start(request)
            except BuildFailed:
                answer, _ = await site.controller.start(request)  # at once, and with the same key
                return answer.instance
            raise AssertionError("the failure reached not everyone")

        instances = await asyncio.gather(*(insistent(key) for key in (None, None, "key of one", "key of two")))
        assert len(set(instances)) == 1
        assert len(agent.starts) == 2, "one that failed, and one for all who tried again"


async def test_the_refusal_over_rest_says_when_to_come_back(tmp_path: Path) -> None:
    crowded = {"starts_per_agent": 1, "max_queued_starts": 0}
    async with running_site(tmp_path, **crowded) as site, an_agent().linked(site.peer) as agent:
        await published(site, 2)
        agent.gate.clear()
        first = start(site, "s0")
        await until(lambda: agent.starts)
        async with site.phone.post("/v1/instances", json={"service": "s1"}) as response:
            problem = msgspec.json.decode(await response.read())
            assert (response.status, problem["type"].rpartition("/")[2]) == (503, "overloaded")
            assert float(response.headers["Retry-After"]) >= 1
        agent.gate.set()
        await first
