"""Two levels of regions behind lines with delay: a parent that is killed is bridged, and taken up when it returns."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from node.local_mesh import Site, up
from tests.multihost.cable import Line
from tests.multihost.testbed import TestBed, running_testbed
from tests.waiting import until

pytestmark = [pytest.mark.netns, pytest.mark.timeout(180)]

LAYOUT = {"a": ["node"], "b": ["node"], "c": ["node"]}
REGIONS = {"a": "eu", "b": "eu/b", "c": "eu/c"}
DELAY_MS = 10.0
WITHIN_S = 10.0


@asynccontextmanager
async def two_levels() -> AsyncIterator[dict[str, Site]]:
    lines = {name: Line(delay_ms=DELAY_MS) for name in ("b", "c")}
    async with running_testbed(LAYOUT, uplinks=lines) as bed, AsyncExitStack() as stack:
        sites = {name: on(bed, name) for name in LAYOUT}
        await sites["a"].found("tree")
        await stack.enter_async_context(up(sites["a"]))
        for site in (sites["b"], sites["c"]):
            await site.join(await sites["a"].invite(site))
            await stack.enter_async_context(up(site))
        yield sites


def on(bed: TestBed, name: str) -> Site:
    enter = ("nsenter", f"--net={bed.host(name, 'node').path}")
    return Site(name, REGIONS[name], bed.folder / name, roles=("controller", "store"), host="", enter=enter)


async def heard(site: Site) -> dict[str, Any]:
    views = json.loads(await site.cornerstore("--json", "regions"))
    return {view["region"]: view for view in views if view["live"] and view["relation"] != "self"}


async def hears(site: Site, *regions: str) -> dict[str, Any]:
    """Exactly these, WITHIN_S and the time of one look from now."""
    began = time.monotonic()

    async def these() -> dict[str, Any] | None:
        found = await heard(site)
        return found if set(found) == set(regions) else None

    found = await until(these, timeout_s=WITHIN_S + 5.0, every_s=0.2)
    print(f"{site.region} hears {regions} after {time.monotonic() - began:.1f} s")
    assert found is not None
    return found


async def test_a_killed_parent_is_bridged_and_taken_up_again() -> None:
    async with two_levels() as sites:
        await hears(sites["a"], "eu/b", "eu/c")
        found = await hears(sites["b"], "eu", "eu/c")
        assert found["eu"]["relation"] == "parent"
        await sites["a"].stop(signal.SIGKILL)
        await hears(sites["b"], "eu/c")
        found = await hears(sites["c"], "eu/b")
        assert found["eu/b"]["rtt_ms"] >= 2 * 2 * DELAY_MS * 0.9, "two lines, there and back"
        await sites["a"].start()
        await hears(sites["b"], "eu", "eu/c")
        await hears(sites["c"], "eu", "eu/b")
        await hears(sites["a"], "eu/b", "eu/c")
