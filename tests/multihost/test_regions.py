"""Five sites in two levels behind lines with delay, real nodes and phones: what breaks is gone round; nothing hangs,
doubles or is lost. One mesh for all tests of this file, which leave it as they found it.

    a  eu     the parent: a controller, no agent; services are published here
    b  eu/b   a controller, an agent of its own beside it, the largest
    c  eu/c   a controller without agents
    d  eu/d   a node with all roles
    e  eu/e   one with room for a single small service, far away
"""

from __future__ import annotations

import asyncio
import secrets
import signal
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import pytest
import pytest_asyncio

from client.controller import ControllerClient
from csar import pack
from node.local_mesh import Site, up
from protocol.instances import InstanceView, StartAnswer, StartRequest, State
from protocol.problems import ControllerUnreachable, NoCapacity, Problem
from tests.multihost.cable import Line
from tests.multihost.testbed import Host, TestBed, running_testbed, socket_on
from tests.waiting import until

pytestmark = [pytest.mark.netns, pytest.mark.timeout(240), pytest.mark.asyncio(loop_scope="module")]

MODULE = Path(__file__).parents[2] / "services" / "word_count_wasm"
PUBLISHED: dict[str, dict[str, int]] = {
    "fifty": {},
    "other": {},
    "hidden": {"mem": 60},
    "large": {"mem": 60},
    "huge": {"mem": 5000},
    "slow": {"padding": 3_000_000, "mem": 60},
    "slow-too": {"padding": 3_000_000, "mem": 60},
}
"""The word count under other names. Only b has room for 60 MB; the padding takes a second and a half on a's line."""
LAYOUT = {
    "a": ["node", "phone"],
    "b": ["node", "agent", "phone"],
    "c": ["node", "phone"],
    "d": ["node", "phone"],
    "e": ["node", "phone"],
}
REGIONS = {"a": "eu", "b": "eu/b", "c": "eu/c", "d": "eu/d", "e": "eu/e"}
LINES = {
    "a": Line(delay_ms=5, rate_mbit=16, queue_ms=500),
    "b": Line(delay_ms=5),
    "c": Line(delay_ms=20),
    "d": Line(delay_ms=10),
    "e": Line(delay_ms=30),
}
AGREE_S = 10.0
AT_ONCE_S = 3.0
ROUND_S = 9.0
"""A request in the first seconds of a cut, which nobody has noticed yet."""
CUT_S = 45.0
"""Long enough that all contacts across the cut were given up, and rest for longer than RETURN_S."""
RETURN_S = 30.0

T = TypeVar("T")


@dataclass
class Mesh:
    bed: TestBed
    sites: dict[str, Site]
    phones: dict[str, aiohttp.ClientSession]

    def phone(self, at: str, *, to: str | None = None, attempts: int = 3) -> ControllerClient:
        """A phone in the LAN of a site, at the controller of that site or of another."""
        url = self.sites[to or at].running.rest
        return ControllerClient(url, session=self.phones[at], attempts=attempts)

    async def publish(self, service: str, *, at: str = "a", mem: int = 8, padding: int = 0) -> None:
        """The word count by another name."""
        source = self.bed.folder / service
        source.mkdir()
        (source / "word_count.wasm").write_bytes((MODULE / "word_count.wasm").read_bytes())
        text = (MODULE / "word_count.yaml").read_text()
        text = text.replace("wc02", service).replace("mem_requirement: 8", f"mem_requirement: {mem}")
        (source / "word_count.yaml").write_text(text)
        (source / "padding").write_bytes(secrets.token_bytes(padding))
        archive = self.bed.folder / f"{service}.csar"
        await asyncio.to_thread(pack, source, archive)
        token = (self.sites[at].data_dir / "identity" / "operator.token").read_text().strip()
        url = self.sites[at].running.rest
        async with ControllerClient(url, session=self.phones[at], token=token) as operator:
            await operator.publish(archive)

    async def finds(self, at: str, service: str) -> bool:
        async with self.phone(at) as client:
            try:
                return len((await client.services(id=service)).items) == 1
            except Problem:
                return False

    async def running(self, at: str, service: str) -> list[InstanceView]:
        """What the controller of a site has of a service on its own agents, in whatever state."""
        async with self.phone(at) as client:
            return [v for v in await client.instances() if v.service.id == service and v.region == REGIONS[at]]

    async def hears(self, at: str, *others: str) -> bool:
        """Exactly these."""
        try:
            async with self.phone(at) as client:
                views = await client.regions()
        except ControllerUnreachable:
            return False
        return {v.region for v in views if v.live and v.relation != "self"} == {REGIONS[o] for o in others}

    async def agree(self, *sites: str) -> bool:
        """Each of these hears all others of these, and nobody else."""
        return all([await self.hears(site, *(o for o in sites if o != site)) for site in sites])

    async def start_again(self, site: str) -> None:
        await self.sites[site].start()
        await until(lambda: self.agree(*REGIONS), timeout_s=AGREE_S, every_s=0.2)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def mesh() -> AsyncIterator[Mesh]:
    async with running_testbed(LAYOUT, uplinks=LINES) as bed, AsyncExitStack() as stack:
        sites = {
            "a": on(bed, "a", "node", "controller", "store"),
            "b": on(bed, "b", "node", "controller", "store"),
            "c": on(bed, "c", "node", "controller", "store"),
            "d": on(bed, "d", "node", memory_mb=48),
            "e": on(bed, "e", "node", memory_mb=8),
        }
        agent = on(bed, "b", "agent", "agent", "store", memory_mb=400)
        phones = {name: await stack.enter_async_context(phone_on(bed.host(name, "phone"))) for name in LAYOUT}
        await sites["a"].found("five")
        await stack.enter_async_context(up(sites["a"]))
        guests = [sites["b"], agent, sites["c"], sites["d"], sites["e"]]
        tokens = [await sites["a"].invite(guest) for guest in guests]
        await asyncio.gather(*(guest.join(token) for guest, token in zip(guests, tokens, strict=True)))
        for guest in guests:
            stack.push_async_callback(guest.stop)
        await asyncio.gather(*(guest.start() for guest in guests))
        mesh = Mesh(bed, sites, phones)
        for service, options in PUBLISHED.items():
            await mesh.publish(service, **options)
        yield mesh


def on(bed: TestBed, site: str, host: str, *roles: Any, memory_mb: int = 64) -> Site:
    where = bed.host(site, host)
    return Site(
        f"{site}-{host}",
        REGIONS[site],
        bed.folder / f"{site}-{host}",
        roles=roles or ("controller", "agent", "store"),
        memory_mb=memory_mb,
        host="",
        enter=("nsenter", f"--net={where.path}"),
        environment={"DOCKER_HOST": "unix:///nonexistent"},
    )


@asynccontextmanager
async def phone_on(host: Host) -> AsyncIterator[aiohttp.ClientSession]:
    connector = aiohttp.TCPConnector(limit=0, socket_factory=lambda info: socket_on(host, info))
    async with aiohttp.ClientSession(connector=connector) as session:
        yield session


def asked(service: str, **options: Any) -> StartRequest:
    return StartRequest(service=service, wait_s=30.0, request_key=secrets.token_hex(16), **options)


async def words(client: ControllerClient, answer: StartAnswer) -> int:
    return int(await client.invoke(answer, "/wordcount", b"one two three"))


async def timed(work: Awaitable[T], limit_s: float) -> T:
    """Fails if it takes longer."""
    async with asyncio.timeout(limit_s):
        return await work


async def test_everybody_hears_of_everybody(mesh: Mesh) -> None:
    await until(lambda: mesh.agree(*REGIONS), timeout_s=AGREE_S, every_s=0.2)
    async with mesh.phone("c") as client:
        rtt = {v.region: v.rtt_ms for v in await client.regions()}
    assert rtt["eu"] is not None
    assert rtt["eu"] >= 2 * (LINES["c"].delay_ms + LINES["a"].delay_ms) * 0.9, "both lines, there and back"


async def test_an_instance_behind_a_router_is_called_through_the_controllers(mesh: Mesh) -> None:
    """Nobody from outside gets through to the agent of b; its controller has a port forward, as it were."""
    await mesh.bed.shut_out("b", "agent")
    async with mesh.phone("c") as far, mesh.phone("b") as near:
        answer = await far.start(asked("hidden"))
        assert (answer.region, answer.reach, answer.relay) == (
            "eu/b",
            "relay",
            f"/v1/instances/{answer.instance}/invoke",
        )
        assert await words(far, answer) == 3
        beside = await near.start(asked("hidden"))
        assert (beside.instance, beside.reach, beside.relay) == (answer.instance, "direct", None)
        assert await words(near, beside) == 3
    await mesh.bed.let_in("b")


async def test_fifty_phones_at_once_cause_one_start_in_another_region(mesh: Mesh) -> None:
    async with mesh.phone("c") as phone:
        answers = await asyncio.gather(*(phone.start(asked("fifty")) for _ in range(50)))
        assert {(a.region, a.handoff) for a in answers} == {("eu/b", ("eu/c",))}
        assert len({a.instance for a in answers}) == 1
        assert len({a.lease.token for a in answers}) == 50
        assert await asyncio.gather(*(words(phone, answer) for answer in answers)) == [3] * 50
    assert len(await mesh.running("b", "fifty")) == 1


async def test_a_full_region_hands_on_and_with_all_full_each_says_why(mesh: Mesh) -> None:
    async with mesh.phone("e") as phone:
        own = await phone.start(asked("fifty"))
        assert (own.region, own.handoff) == ("eu/e", ())
        elsewhere = await phone.start(asked("other"))
        assert (elsewhere.region, elsewhere.handoff) == ("eu/b", ("eu/e",))
        assert await words(phone, elsewhere) == 3
        began = time.monotonic()
        with pytest.raises(NoCapacity) as refused:
            await phone.start(asked("huge"))
        assert time.monotonic() - began < AT_ONCE_S
        assert set(refused.value.extra["regions"]) == set(REGIONS.values())
        assert (await phone.stop(own.instance, own.lease.token)).state is State.STOPPED


async def test_siblings_that_lost_their_line_go_round(mesh: Mesh) -> None:
    """Only b has room, and c cannot get through to b: another region can, and b's instance is called through it."""
    await mesh.bed.part("b", "c")
    assert not await mesh.bed.ping(mesh.bed.host("c", "node"), mesh.bed.host("b", "node"))
    async with mesh.phone("c") as phone:
        first = await timed(phone.start(asked("large")), ROUND_S)
        assert (first.region, first.handoff[0], len(first.handoff)) == ("eu/b", "eu/c", 2)
        assert (first.reach, await words(phone, first)) == ("relay", 3)
        again = await timed(phone.start(asked("large")), AT_ONCE_S)
        assert again.instance == first.instance
        with pytest.raises(NoCapacity):
            await timed(phone.start(asked("huge")), AT_ONCE_S)
        stopped = await phone.stop(first.instance, first.lease.token)
        assert "1 other lease" in stopped.reason
        assert len(await mesh.running("b", "large")) == 1

        async def gets_through() -> bool:
            return (await phone.start(asked("large"))).handoff == ("eu/c",)

        await mesh.bed.reunite()
        await until(gets_through, timeout_s=AGREE_S, every_s=0.2)


async def test_a_controller_that_dies_over_a_request_costs_neither_instance_nor_lease(mesh: Mesh) -> None:
    """c, which handed it off: the same request starts nothing twice, and the token works where the instance runs."""
    request = asked("slow")
    async with mesh.phone("c", attempts=1) as phone, mesh.phone("c", to="b") as at_host:
        asking = asyncio.create_task(phone.start(request))
        await until(lambda: mesh.running("b", "slow"))
        await mesh.sites["c"].stop(signal.SIGKILL)
        with pytest.raises(ControllerUnreachable):
            await asking
        await mesh.sites["c"].start()
        answer = await phone.start(request)
        (only,) = await mesh.running("b", "slow")
        assert (answer.instance, answer.handoff) == (only.instance, ("eu/c",))
        assert await words(phone, answer) == 3

        await mesh.sites["c"].stop(signal.SIGKILL)
        assert answer.lease.controller == at_host.url
        view = await at_host.alive(answer.instance, answer.lease.token, alive_time=600)
        assert view.expires_at is not None
        assert view.expires_at > time.time() + 500
        assert (await at_host.stop(answer.instance, answer.lease.token)).state is State.STOPPED
        await mesh.start_again("c")
        assert (await phone.instance(answer.instance)).state is State.STOPPED


async def test_a_controller_that_dies_over_a_start_of_its_own_agent_takes_it_up_again(mesh: Mesh) -> None:
    request = asked("slow-too", force_rebuild=True)
    async with mesh.phone("b", attempts=1) as phone:
        asking = asyncio.create_task(phone.start(request))
        await until(lambda: mesh.running("b", "slow-too"))
        await mesh.sites["b"].stop(signal.SIGKILL)
        with pytest.raises(ControllerUnreachable):
            await asking
        await mesh.sites["b"].start()
        answer = await phone.start(request)
        (only,) = await mesh.running("b", "slow-too")
        assert (answer.instance, answer.region, answer.handoff) == (only.instance, "eu/b", ())
        assert await words(phone, answer) == 3
    await until(lambda: mesh.agree(*REGIONS), timeout_s=AGREE_S, every_s=0.2)


async def test_without_the_parent_siblings_hand_off(mesh: Mesh) -> None:
    await mesh.sites["a"].stop(signal.SIGKILL)
    async with mesh.phone("c") as phone:
        at_once = await timed(phone.start(asked("fifty", force_rebuild=True)), AT_ONCE_S)
        assert (at_once.start, at_once.handoff) == ("cold", ("eu/c",))
        await until(lambda: mesh.agree("b", "c", "d", "e"), timeout_s=AGREE_S, every_s=0.2)
        later = await timed(phone.start(asked("fifty", force_rebuild=True)), AT_ONCE_S)
        assert (later.start, later.handoff) == ("cold", ("eu/c",))
        assert later.instance != at_once.instance
    await mesh.start_again("a")


async def test_a_site_that_is_cut_off_serves_its_phones_and_is_back_within_10_s(mesh: Mesh) -> None:
    async with mesh.phone("b") as inside, mesh.phone("c") as outside:
        before = await inside.start(asked("fifty"))
        await mesh.bed.cut_wan("b")
        cut = time.monotonic()
        warm = await timed(inside.start(asked("fifty")), AT_ONCE_S)
        assert (warm.instance, await words(inside, warm)) == (before.instance, 3)
        cold = await timed(inside.start(asked("fifty", force_rebuild=True)), AT_ONCE_S)
        assert (cold.start, cold.region, await words(inside, cold)) == ("cold", "eu/b", 3)
        with pytest.raises(Problem):
            await timed(inside.start(asked("unpublished")), ROUND_S)
        await mesh.publish("from-inside", at="b")
        await mesh.publish("from-outside", at="a")
        assert await mesh.finds("b", "fifty"), "what the site knew it still knows"
        assert not await mesh.finds("b", "from-outside")
        other = await timed(outside.start(asked("fifty", force_rebuild=True)), ROUND_S)
        assert other.region in ("eu/d", "eu/e")
        await until(lambda: mesh.agree("a", "c", "d", "e"), timeout_s=AGREE_S, every_s=0.2)
        await until(lambda: mesh.hears("b"), timeout_s=AGREE_S, every_s=0.2)
        await asyncio.sleep(max(0.0, CUT_S - (time.monotonic() - cut)))
        again = await timed(inside.start(asked("fifty")), AT_ONCE_S)
        assert (again.region, await words(inside, again)) == ("eu/b", 3)
        await mesh.bed.heal("b")
        healed = time.monotonic()
        await until(lambda: mesh.agree(*REGIONS), timeout_s=AGREE_S, every_s=0.2)
        left_s = RETURN_S - (time.monotonic() - healed)
        await until(lambda: mesh.finds("b", "from-outside"), timeout_s=left_s, every_s=0.2)
        await until(lambda: mesh.finds("c", "from-inside"), timeout_s=left_s, every_s=0.2)
        back = await outside.start(asked("large"))
        assert back.region == "eu/b"
