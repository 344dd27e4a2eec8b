"""Controllers of several regions over real sockets: who cannot host asks others; leases work from afar."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import msgspec
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from dht.records.memory_directory import MemoryDirectory, MemoryMesh
from protocol.instances import Progress, StartRequest, State
from protocol.peers import PeerIdentity
from protocol.problems import DeadlineExceeded, Forbidden, NoCapacity, StartFailed, UnknownInstance
from region_controller import Caller
from region_controller.handoff import HandoffRequest
from region_controller.wanted import loop_time
from tests.fake_agent import FakeAgent
from tests.one_region import Site, a_service, key_of, node_of, running_site
from tests.waiting import until

REQUEST = StartRequest(service="svc")


def an_agent(region: str, memory: int = 1000) -> FakeAgent:
    return FakeAgent(node_of("agent of " + region), region, memory=memory)


@asynccontextmanager
async def two_regions(tmp_path: Path, mesh: MemoryMesh | None = None) -> AsyncIterator[tuple[Site, Site, FakeAgent]]:
    """One without an agent, which hands everything off, and one with an agent."""
    mesh = mesh or MemoryMesh()
    async with (
        running_site(tmp_path, "demo/c", mesh=mesh) as far,
        running_site(tmp_path, "demo/b", mesh=mesh) as near,
        an_agent("demo/b").linked(near.peer) as agent,
    ):
        yield far, near, agent


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


async def test_the_phone_sees_how_its_start_goes_on_in_another_region(tmp_path: Path) -> None:
    async with two_regions(tmp_path) as (far, near, agent):
        await near.publish(a_service())
        await announced(near, 1)
        agent.gate.clear()
        steps: list[Progress] = []
        phone = asyncio.create_task(far.controller.start(REQUEST, steps.append))
        built = Progress("build", "building", region="demo/b")
        await until(lambda: built in steps)
        assert not phone.done(), "it is told while it happens"
        agent.failures.append(StartFailed("it crashed", log=["boom"]))
        fresh = msgspec.structs.replace(REQUEST, force_rebuild=True)
        with pytest.raises(StartFailed) as caught:
            await far.controller.start(fresh, steps.append)
        assert caught.value.extra["log"] == ["boom"], "a problem at the end of a stream is the same problem"
        agent.gate.set()
        answer, _ = await phone
        assert (answer.region, answer.handoff) == ("demo/b", ("demo/c",))


async def test_what_is_answered_at_once_is_no_stream(tmp_path: Path) -> None:
    async with running_site(tmp_path, "demo/b") as site, an_agent("demo/b").linked(site.peer):
        record = await site.publish(a_service())
        body = HandoffRequest(
            request=REQUEST, digest=record.digest, visited=(), hops=1, deadline_s=5.0, request_key="one of many"
        )
        headers = {"Test-Peer": f"{node_of('x')} demo demo/x controller", "Accept": "text/event-stream"}
        kinds = []
        async with aiohttp.ClientSession(headers=headers) as session:
            for key in ("a cold start", "a warm start"):
                data = msgspec.json.encode(msgspec.structs.replace(body, request_key=key))
                async with session.post(site.peer + "/peer/handoff", data=data) as response:
                    kinds.append(response.content_type)
        assert kinds == ["text/event-stream", "application/json"]


async def test_a_log_is_read_from_afar_by_holders_and_by_the_regions_operator(tmp_path: Path) -> None:
    async with two_regions(tmp_path) as (far, near, _):
        await near.publish(a_service())
        answer, _ = await far.controller.start(REQUEST)
        for caller in (Caller(answer.lease.token), Caller(operator=True)):
            assert (await far.controller.log(answer.instance, 2, caller)).lines == ("line 0", "line 1")
        with pytest.raises(Forbidden):
            await far.controller.log(answer.instance, 2, Caller("wrong"))


async def test_a_handed_off_lease_is_renewed_and_its_instance_shown_at_once(tmp_path: Path) -> None:
    async with two_regions(tmp_path) as (far, near, _):
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
    async with two_regions(tmp_path) as (far, near, agent):
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
    async with two_regions(tmp_path, mesh) as (far, near, agent):
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


async def test_after_four_hops_nobody_else_is_asked(tmp_path: Path) -> None:
    mesh = MemoryMesh()
    async with (
        running_site(tmp_path, "demo/c", mesh=mesh) as last,
        running_site(tmp_path, "demo/b", mesh=mesh) as near,
        an_agent("demo/b").linked(near.peer) as agent,
    ):
        record = await near.publish(a_service())
        await announced(near, 1)
        body = HandoffRequest(
            request=REQUEST, digest=record.digest, visited=(), hops=4, deadline_s=5.0, request_key="the fifth would be"
        )
        with pytest.raises(NoCapacity) as refused:
            await last.controller.receive_handoff(body, PeerIdentity(node_of("x"), "demo", "demo/x", ("controller",)))
        assert set(refused.value.extra["regions"]) == {"demo/c"}
        third = msgspec.structs.replace(body, hops=3, request_key="the fourth is asked")
        answer = await last.controller.receive_handoff(
            third, PeerIdentity(node_of("x"), "demo", "demo/x", ("controller",))
        )
        assert (answer.region, len(agent.starts)) == ("demo/b", 1)


@asynccontextmanager
async def a_region_that_answers_nothing(mesh: MemoryMesh, region: str) -> AsyncIterator[None]:
    """It takes connections, and looks as if it had much room."""
    over = asyncio.Event()

    async def hold(_: web.Request) -> web.Response:
        await over.wait()
        return web.Response()

    app = web.Application()
    app.router.add_post("/{path:.*}", hold)
    async with TestServer(app, host="127.0.0.1") as server:
        directory = MemoryDirectory(mesh, key_of(region))
        directory._addresses = (f"127.0.0.1:{server.port}",)
        await directory.announce_region(region=region, agents=9, memory_total=9000, memory_free=9000)
        try:
            yield
        finally:
            over.set()


async def test_one_deadline_for_all_and_who_is_silent_is_avoided_at_once(tmp_path: Path) -> None:
    mesh = MemoryMesh()
    async with running_site(tmp_path, "demo/c", mesh=mesh) as far, a_region_that_answers_nothing(mesh, "demo/a"):
        await far.publish(a_service())
        began = time.monotonic()
        with pytest.raises((DeadlineExceeded, NoCapacity)):
            await far.controller.start(StartRequest(service="svc", wait_s=1.0))
        assert time.monotonic() - began < 2.0
        async with (
            running_site(tmp_path, "demo/b", mesh=mesh) as near,
            an_agent("demo/b").linked(near.peer),
        ):
            await announced(near, 1)
            await until(lambda: node_of("demo/a") in far.controller.relatives.view.resting(loop_time()))
            async with asyncio.timeout(1.0):
                answer, _ = await far.controller.start(REQUEST)
            assert answer.region == "demo/b"


@asynccontextmanager
async def a_line_that_loses_the_first_answer(to: str) -> AsyncIterator[str]:
    """An address before another one; the first answer to a hand-off ends there."""
    host, _, port = to.rpartition("/")[2].partition(":")
    lost: list[bytes] = []

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, answers: bool) -> None:
        handed = False
        while data := await reader.read(65536):
            handed = handed or b"/peer/handoff" in data
            if answers and asked_for[writer] and not lost:
                lost.append(data)
                break
            if not answers and handed:
                asked_for[pairs[writer]] = True
            writer.write(data)
        writer.close()

    asked_for: dict[asyncio.StreamWriter, bool] = {}
    pairs: dict[asyncio.StreamWriter, asyncio.StreamWriter] = {}

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_in, there_out = await asyncio.open_connection(host, int(port))
        pairs[there_out], asked_for[writer] = writer, False
        await asyncio.gather(
            copy(reader, there_out, answers=False), copy(there_in, writer, answers=True), return_exceptions=True
        )

    async with await asyncio.start_server(take, "127.0.0.1", 0) as server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        assert lost


async def test_an_answer_that_is_lost_on_the_way_is_asked_for_again(tmp_path: Path) -> None:
    mesh = MemoryMesh()
    async with (
        running_site(tmp_path, "demo/c", mesh=mesh) as far,
        running_site(tmp_path, "demo/b", mesh=mesh) as near,
        an_agent("demo/b").linked(near.peer) as agent,
        a_line_that_loses_the_first_answer(near.peer) as address,
    ):
        await near.publish(a_service())
        near.directory._addresses = (address,)
        await near.directory.announce_region(region="demo/b", agents=1, memory_total=1000, memory_free=1000)
        answer, _ = await far.controller.start(msgspec.structs.replace(REQUEST, force_rebuild=True))
        assert (answer.region, len(agent.starts)) == ("demo/b", 1)
        assert near.controller.stats().leases == 1


async def test_what_its_own_controller_cannot_reach_is_not_handed_out(tmp_path: Path) -> None:
    async with two_regions(tmp_path) as (far, near, agent):
        agent.host = "255.255.255.255"  # no TCP connection ever leads there
        await near.publish(a_service())
        await announced(near, 1)
        with pytest.raises(NoCapacity) as refused:
            await far.controller.start(REQUEST)
        assert "its own controller cannot reach it there" in refused.value.extra["regions"]["demo/b"]
        assert near.controller.stats().leases == 0
