"""The main job across hosts: three sites behind routers, an engine of its own in site B, a phone in its LAN."""

from __future__ import annotations

import json
import subprocess
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from node.local_mesh import Site, up
from protocol.peers import Role
from protocol.problems import Problem
from tests.multihost.testbed import Host, TestBed, running_testbed
from tests.waiting import until

pytestmark = [pytest.mark.netns, pytest.mark.docker, pytest.mark.timeout(240)]

REPOSITORY = Path(__file__).parents[2]
LAYOUT = {"a": ["node"], "b": ["controller", "agent", "phone"], "c": ["node", "phone"]}
WORDS = "eleven words stand in this text so that one may count"


@dataclass
class Mesh:
    bed: TestBed
    a: Site
    b: Site
    agent: Site
    c: Site
    phone: Site
    far_phone: Site


def on(bed: TestBed, host: Host, name: str, region: str, *roles: Role, memory_mb: int = 512, docker: str = "") -> Site:
    """A node (or a phone) on a host of the bed; it finds out its LAN address by itself."""
    return Site(
        name,
        region,
        bed.folder / name,
        roles=roles or ("store",),
        memory_mb=memory_mb,
        host="",
        enter=("nsenter", f"--net={host.path}"),
        environment={"DOCKER_HOST": docker} if docker else {},
    )


@asynccontextmanager
async def three_sites(base_image: Path) -> AsyncIterator[Mesh]:
    async with running_testbed(LAYOUT) as bed, AsyncExitStack() as stack:
        engine = await bed.start_engine(bed.host("b", "agent"))
        subprocess.run(["docker", "-H", engine, "load", "-i", str(base_image)], check=True, capture_output=True)
        mesh = Mesh(
            bed,
            a=on(bed, bed.host("a", "node"), "a", "eu/a", "controller", "store"),
            b=on(bed, bed.host("b", "controller"), "b", "eu/b", "controller", "store"),
            agent=on(bed, bed.host("b", "agent"), "b-agent", "eu/b", "agent", "store", docker=engine),
            c=on(bed, bed.host("c", "node"), "c", "eu/c", "controller", "agent", "store", memory_mb=16),
            phone=on(bed, bed.host("b", "phone"), "phone", "eu/b"),
            far_phone=on(bed, bed.host("c", "phone"), "far-phone", "eu/c"),
        )
        await mesh.a.found("story")
        await stack.enter_async_context(up(mesh.a))
        for site in (mesh.b, mesh.agent, mesh.c):
            await site.join(await mesh.a.invite(site))
            await stack.enter_async_context(up(site))
        yield mesh


async def ask(site: Site, *arguments: str) -> Any:
    return json.loads(await site.cornerstore("--json", *arguments))


async def agent_linked(site: Site) -> bool:
    return len(await ask(site, "agents")) == 1


async def state_of(site: Site, instance: str) -> str:
    views = await ask(site, "ps")
    return next((view["state"] for view in views if view["instance"] == instance), "gone")


async def test_a_request_travels_the_whole_way(base_image_archive: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(WORDS)
    async with three_sites(base_image_archive) as mesh:
        published = await ask(mesh.a, "publish", str(REPOSITORY / "services" / "word_count"))

        # The phone knows nothing but mDNS, and multicast ends at its own router: it sees B and only B.
        found = await ask(mesh.phone, "discover")
        assert [controller["region"] for controller in found] == ["eu/b"]
        await until(lambda: agent_linked(mesh.phone), timeout_s=20)

        cold = await ask(mesh.phone, "start", "wc01")
        assert (cold["start"], cold["region"], cold["agent"]) == ("cold", "eu/b", mesh.agent.running.node)
        assert cold["service"]["digest"] == published["digest"]
        assert cold["host"] == mesh.bed.host("b", "agent").address
        assert await mesh.phone.cornerstore("invoke", "wc01", "/wordcount", str(text)) == str(len(WORDS.split()))

        warm = await ask(mesh.phone, "start", "--category", "/text", "--input", "text", "--output", "integer")
        assert (warm["start"], warm["instance"]) == ("warm", cold["instance"])

        # Site C cannot host. Its phone gets an address at B all the same, and can reach it.
        handed = await ask(mesh.far_phone, "start", "wc01")
        assert (handed["region"], handed["handoff"]) == ("eu/b", ["eu/c"])
        assert await mesh.far_phone.cornerstore("invoke", "wc01", "/wordcount", str(text)) == str(len(WORDS.split()))

        # Lifetimes are the client's to set.
        brief = await ask(mesh.phone, "start", "wc01", "--force-rebuild", "--alive-time", "6")
        assert brief["instance"] != cold["instance"]
        await until(lambda: _is(mesh.phone, brief["instance"], "stopped"), timeout_s=40, every_s=0.5)
        restarted = await ask(mesh.phone, "restart", brief["instance"])
        assert (restarted["state"], restarted["url"]) == ("running", brief["url"])
        stopped = await ask(mesh.phone, "stop", brief["instance"])
        assert (stopped["state"], stopped["reason"]) == ("stopped", "stopped-by-client")

        # The seeder's site is cut off: B has its own copy, and goes on.
        await mesh.bed.cut_wan("a")
        again = await ask(mesh.phone, "start", "wc01")
        assert again["start"] == "warm"

        # Withdrawn at C by the publisher, after the cut is healed: gone everywhere.
        await mesh.bed.heal("a")
        there = ("--controller", mesh.c.running.rest)
        with pytest.raises(Problem, match="forbidden"):
            await mesh.far_phone.cornerstore("withdraw", "wc01")
        await mesh.a.cornerstore(*there, "withdraw", "wc01")
        await until(lambda: _finds_nothing(mesh.phone), timeout_s=5)


async def _is(site: Site, instance: str, state: str) -> bool:
    return await state_of(site, instance) == state


async def _finds_nothing(site: Site) -> bool:
    return await ask(site, "search", "--category", "/text") == []
