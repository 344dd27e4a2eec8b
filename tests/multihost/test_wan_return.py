"""A site whose uplink is cut goes on with what it has, and finds the mesh again by itself: real nodes, real routers."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from node.local_mesh import Site, up
from protocol.problems import Problem
from tests.multihost.testbed import Host, TestBed, running_testbed
from tests.waiting import until

pytestmark = [pytest.mark.netns, pytest.mark.timeout(240)]

SERVICES = Path(__file__).parents[2] / "services"
LAYOUT = {"a": ["node"], "b": ["controller", "store"], "c": ["node"]}
CUT_S = 45.0
"""Long enough that all contacts across the cut were given up, and rest for longer than RETURN_S."""
RETURN_S = 30.0


def on(bed: TestBed, host: Host, name: str, region: str, *roles: Any) -> Site:
    return Site(name, region, bed.folder / name, roles=roles, host="", enter=("nsenter", f"--net={host.path}"))


async def ask(site: Site, *arguments: str) -> Any:
    return json.loads(await site.cornerstore("--json", *arguments))


async def finds(site: Site, service: str) -> bool:
    try:
        return len(await ask(site, "search", "--id", service)) == 1
    except Problem:
        return False


async def test_a_site_is_back_in_the_mesh_within_30_seconds_of_its_uplink(tmp_path: Path) -> None:
    async with running_testbed(LAYOUT) as bed, AsyncExitStack() as stack:
        a = on(bed, bed.host("a", "node"), "a", "eu/a", "controller", "store")
        b = on(bed, bed.host("b", "controller"), "b", "eu/b", "controller", "store")
        b_store = on(bed, bed.host("b", "store"), "b-store", "eu/b", "store")
        c = on(bed, bed.host("c", "node"), "c", "eu/c", "controller", "store")
        await a.found("wan")
        await stack.enter_async_context(up(a))
        for site in (b, b_store, c):
            await site.join(await a.invite(site))
            await stack.enter_async_context(up(site))
        await ask(a, "publish", str(SERVICES / "word_count"))
        await until(lambda: finds(b, "wc01"), timeout_s=10)

        await bed.cut_wan("b")
        assert not await bed.ping(bed.host("b", "controller"), bed.host("a", "node"))
        began = time.monotonic()
        await ask(a, "publish", str(renamed(tmp_path / "outside", "from-outside")))
        await ask(b, "publish", str(renamed(tmp_path / "inside", "from-inside")))
        assert await finds(b, "wc01"), "what the site knew it still knows"
        assert not await finds(b, "from-outside")
        await asyncio.sleep(max(0.0, CUT_S - (time.monotonic() - began)))
        assert await finds(b, "wc01")

        await bed.heal("b")
        healed = time.monotonic()
        await until(lambda: finds(b, "from-outside"), timeout_s=RETURN_S, every_s=0.5)
        await until(lambda: finds(c, "from-inside"), timeout_s=RETURN_S, every_s=0.5)
        assert time.monotonic() - healed < RETURN_S


def renamed(folder: Path, service_id: str) -> Path:
    """The word count under another id."""
    for file in (SERVICES / "word_count").rglob("*"):
        if file.is_file() and "__pycache__" not in file.parts:
            target = folder / file.relative_to(SERVICES / "word_count")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read_bytes().replace(b"wc01", service_id.encode()))
    return folder
