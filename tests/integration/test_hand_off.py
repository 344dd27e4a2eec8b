"""Controllers of several regions over real sockets: who cannot host asks others; leases work from afar."""

from __future__ import annotations

import asyncio
from pathlib import Path

import aiohttp
import msgspec
import pytest

from dht.records.memory_directory import MemoryMesh
from protocol.instances import StartRequest, State
from protocol.problems import Forbidden, NoCapacity, StartFailed, UnknownInstance
from region_controller import Caller
from region_controller.handoff import HandoffRequest
from tests.fake_agent import FakeAgent
from tests.one_region import Site, a_service, node_of, running_site
from tests.waiting import until

REQUEST = StartRequest(service="svc")


def an_agent(region: str, memory: int = 1000) -> FakeAgent:
    return FakeAgent(node_of("agent of " + region), region, memory=memory)


async def announced(site: Site, agents: int) -> None:
    """The mesh knows how many agents the site has."""

    async def knows() -> bool:
        return any(r.agents == agents for r in await site.directory.regions(f"region:{site.controller.config.region}"))

    await until(knows)


async def test_a_sibling_hosts_and_the_lease_works_from_here(tmp_path: Path) -> None:
    mesh = MemoryMesh()
    async with (
        running_site(tmp_path, "demo/c", mesh=mesh) as far,
        running_site(tmp_path, "demo/b", mesh=mesh) as near,
        an_agent("demo/c", memory=16).linked(far.peer),
        an_agent("demo/b").linked(near.peer) as agent,
    ):
        await near.publish(a_service())
        await announced(near, 1)
        cold, was_cold = await far.controller.start(REQUEST)
        assert (was_cold, cold.start, cold.region, cold.handoff) == (True, "cold", "demo/b", ("demo/c",))
        assert "no agent of demo/c can host it; demo/b took it" in cold.why
        warm, was_cold = await far.controller.start(REQUEST)
        assert (was_cold, warm.instance) == (False, cold.instance)
        assert len(agent.starts) == 1

        mine, other = Caller(cold.lease.token), Caller(warm.lease.token)
        assert (await far.controller.instance(cold.instance)).state is State.RUNNING
        assert [v.region for v in far.controller.instances()] == ["demo/b"]
        with pytest.raises(Forbidden):
            await far.controller.stop(cold.instance, Caller("wrong"))
        view = await far.controller.alive(cold.instance, mine, 700)
        assert view.expires_at == agent.instances[cold.instance].expires_at
        assert "1 other lease" in (await far.controller.stop(cold.instance, mine)).reason
        assert (await far.controller.stop(cold.instance, other)).state is State.STOPPED
        assert (await far.controller.restart(cold.instance, other)).state is State.RUNNING
        assert (await far.controller.remove(cold.instance, Caller(operator=True))).state is State.REMOVED
        assert far.controller.instances() == []
        assert far.controller.stats().starts["handed_off"] == 2
        assert near.controller.stats().starts["received"] == 2


async def test_a_log_is_read_from_afar_by_holders_and_by_the_regions_operator(tmp_path: Path) -> None:
    mesh = MemoryMesh()
    async with (
        running_site(tmp_path, "demo/c", mesh=mesh) as far,
        running_site(tmp_path, "demo/b", mesh=mesh) as near,
        an_agent("demo/b").linked(near.peer),
    ):
        await near.publish(a_service())
        answer, _ = await far.controller.start(REQUEST)
        for caller in (Caller(answer.lease.token), Caller(operator=True)):
            assert (await far.controller.log(answer.instance, 2, caller)).lines == ("line 0", "line 1")
        with pytest.raises(Forbidden):
            await far.controller.log(answer.instance, 2, Caller("wrong"))


async def test_a_handed_off_lease_is_renewed_and_its_instance_shown_at_once(tmp_path: Path) -> None:
    mesh = MemoryMesh()
    async with (
        running_site(tmp_path, "demo/c", mesh=mesh) as far,
        running_site(tmp_path, "demo/b", mesh=mesh) as near,
        an_agent("demo/b").linked(near.peer),
    ):
        await near.publish(a_service())
        await announced(near, 1)
        first, _ = await far.controller.start(REQUEST)
        (shown,) = far.controller.instances()
        assert (shown.state, shown.url, shown.agent) == (State.RUNNING, first.url, first.agent)
        holding = StartRequest(service="svc", leases=("of another controller", first.lease.token))
        again, _ = await far.controller.start(holding)
        assert (again.instance, again.lease.token) == (first.instance, first.lease.token)
        assert near.controller.stats().leases == far.controller.stats().leases == 1

        other, _ = await far.controller.start(REQUEST)
        await far.controller.stop(first.instance, Caller(first.lease.token))
        (shown,) = far.controller.instances()
        assert (shown.state, shown.reason) == (State.RUNNING, ""), "what one holder is told is not everyone's"
        with pytest.raises(Forbidden):
            await far.controller.stop(first.instance, Caller(first.lease.token))
        assert (await far.controller.stop(first.instance, Caller(other.lease.token))).state is State.STOPPED


async def test_fifty_phones_at_a_region_without_agents(tmp_path: Path) -> None:
    mesh = MemoryMesh()
    async with (
        running_site(tmp_path, "demo/c", mesh=mesh) as far,
        running_site(tmp_path, "demo/b", mesh=mesh) as near,
        an_agent("demo/b").linked(near.peer) as agent,
    ):
        await near.publish(a_service())
        answers = [a for a, _ in await asyncio.gather(*(far.controller.start(REQUEST) for _ in range(50)))]
        assert len(agent.starts) == 1
        assert len({a.lease.token for a in answers}) == 50
        assert {a.handoff for a in answers} == {("demo/c",)}


async def test_handed_off_instances_survive_a_restart_of_the_phones_controller(tmp_path: Path) -> None:
    mesh = MemoryMesh()
    async with running_site(tmp_path, "demo/b", mesh=mesh) as near, an_agent("demo/b").linked(near.peer) as agent:
        await near.publish(a_service())
        async with running_site(tmp_path, "demo/c", mesh=mesh) as far:
            answer, _ = await far.controller.start(REQUEST)
        async with running_site(tmp_path, "demo/c", mesh=mesh) as far:
            assert far.controller.instances()[0].state is State.UNKNOWN
            view = await far.controller.stop(answer.instance, Caller(answer.lease.token))
            assert view.state is State.STOPPED
            await agent.report(answer.instance, state=State.REMOVED)
            await until(lambda: not near.controller.instances())
            with pytest.raises(UnknownInstance):
                await far.controller.instance(answer.instance)
            assert far.controller.instances() == []


async def test_a_tree_is_asked_once_each_and_every_region_gives_its_reason(tmp_path: Path) -> None:
    mesh = MemoryMesh()
    async with (
        running_site(tmp_path, "eu/de/ka", mesh=mesh) as asked,
        running_site(tmp_path, "eu/de/da", mesh=mesh) as sibling,
        running_site(tmp_path, "eu/de", mesh=mesh) as parent,
        running_site(tmp_path, "eu/fr", mesh=mesh) as uncle,
        running_site(tmp_path, "eu/fr/paris", mesh=mesh) as cousin,
        an_agent("eu/de", memory=10).linked(parent.peer),
    ):
        await asked.publish(a_service())
        with pytest.raises(NoCapacity) as caught:
            await asked.controller.start(REQUEST)
        regions = caught.value.extra["regions"]
        assert set(regions) == {"eu/de/ka", "eu/de/da", "eu/de", "eu/fr", "eu/fr/paris"}
        assert regions["eu/de/da"] == "it has no agents"
        assert "needs 100 MB" in regions["eu/de"]
        assert "asked" not in caught.value.extra, "that is for controllers"
        assert [s.controller.stats().starts["failed"] for s in (asked, sibling, parent, uncle, cousin)] == [1] * 5
        async with an_agent("eu/fr/paris").linked(cousin.peer):
            await announced(cousin, 1)
            answer, _ = await asked.controller.start(REQUEST)
            assert answer.region == "eu/fr/paris"
            by_uncle = answer.handoff == ("eu/de/ka", "eu/fr")
            assert by_uncle or answer.handoff == ("eu/de/ka",), "where Paris' own word of its agent came first"
            stopped = await asked.controller.stop(answer.instance, Caller(answer.lease.token))
            assert stopped.state is State.STOPPED
        assert uncle.controller.stats().starts["handed_off"] == by_uncle


async def test_a_dead_region_is_passed_over_and_a_broken_service_is_not_passed_on(tmp_path: Path) -> None:
    mesh = MemoryMesh()
    async with (
        running_site(tmp_path, "demo/c", mesh=mesh) as far,
        running_site(tmp_path, "demo/b", mesh=mesh) as near,
        an_agent("demo/b").linked(near.peer) as agent,
    ):
        async with running_site(tmp_path, "demo/a", mesh=mesh) as dead:
            await dead.directory.announce_region(region="demo/a", agents=9, memory_total=9000, memory_free=9000)
        await near.publish(a_service())
        agent.failures.append(StartFailed("it crashed", log=["boom"]))
        with pytest.raises(StartFailed) as caught:
            await far.controller.start(REQUEST)
        assert caught.value.extra["log"] == ["boom"]
        answer, _ = await far.controller.start(REQUEST)
        assert answer.region == "demo/b"


async def test_only_controllers_hand_off_and_a_repeated_key_is_one_request(tmp_path: Path) -> None:
    async with running_site(tmp_path, "demo/b") as site, an_agent("demo/b").linked(site.peer) as agent:
        record = await site.publish(a_service())
        body = HandoffRequest(
            request=StartRequest(service="svc", force_rebuild=True),
            digest=record.digest,
            visited=(),
            hops=1,
            deadline_s=5.0,
            request_key="repeated",
        )

        async def ask(role: str, data: bytes) -> tuple[int, dict[str, object]]:
            headers = {"Test-Peer": f"{node_of('x')} demo demo/x {role}"}
            async with (
                aiohttp.ClientSession(headers=headers) as session,
                session.post(site.peer + "/peer/handoff", data=data) as response,
            ):
                return response.status, msgspec.json.decode(await response.read())

        data = msgspec.json.encode(body)
        assert (await ask("agent", data))[0] == 403
        assert (await ask("controller", data.replace(b'"hops":1', b'"hops":5')))[0] == 400
        first, second = await asyncio.gather(ask("controller", data), ask("controller", data))
        assert first == second
        assert first[0] == 200
        assert len(agent.starts) == 1


async def test_a_request_repeated_over_a_controller_that_died_starts_nothing_twice(tmp_path: Path) -> None:
    mesh = MemoryMesh()
    request = StartRequest(service="svc", force_rebuild=True, request_key="of the phone")
    async with running_site(tmp_path, "demo/b", mesh=mesh) as near, an_agent("demo/b").linked(near.peer) as agent:
        await near.publish(a_service())
        await announced(near, 1)
        async with running_site(tmp_path, "demo/c", mesh=mesh) as far:
            first, _ = await far.controller.start(request)
        async with running_site(tmp_path, "demo/c", mesh=mesh) as far:
            again, _ = await far.controller.start(request)
            other, _ = await far.controller.start(msgspec.structs.replace(request, request_key="of another"))
        assert again.instance == first.instance != other.instance
        assert len(agent.starts) == 2


async def test_where_the_operator_prefers_it_what_runs_nearby_beats_a_cold_start_here(tmp_path: Path) -> None:
    mesh = MemoryMesh()
    async with (
        running_site(tmp_path, "demo/b", mesh=mesh) as near,
        running_site(tmp_path, "demo/c", mesh=mesh, prefer_warm_within_s=5.0) as here,
        an_agent("demo/b").linked(near.peer) as theirs,
        an_agent("demo/c").linked(here.peer) as ours,
    ):
        await near.publish(a_service())
        running, _ = await near.controller.start(REQUEST)

        async def has_heard() -> bool:
            views = await here.controller.regions()
            return any(v.region == "demo/b" and v.live and v.rtt_ms is not None and v.memory_free == 900 for v in views)

        await until(has_heard)
        answer, was_cold = await here.controller.start(REQUEST)
        assert (answer.instance, was_cold, answer.handoff) == (running.instance, False, ("demo/c",))
        assert "it runs in demo/b" in answer.why
        fresh, _ = await here.controller.start(msgspec.structs.replace(REQUEST, force_rebuild=True))
        assert fresh.region == "demo/c"
        assert (len(theirs.starts), len(ours.starts)) == (1, 1)
