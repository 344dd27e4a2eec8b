"""No site is needed: founder and publisher are killed, and who never spoke to them has the service all the same."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import aiohttp
import pytest

from client.controller import ControllerClient
from node.local_mesh import Site
from protocol.instances import StartRequest
from tests.local_sites import WORD_COUNT, ask, have_agent, running_sites
from tests.waiting import until

pytestmark = pytest.mark.lan


def store_site(folder: Path, name: str) -> Site:
    return Site(name, f"test/{name}", folder / name, roles=("controller", "store"))


def running_site(folder: Path, name: str) -> Site:
    return Site(name, f"test/{name}", folder / name, memory_mb=256)


async def kill(*sites: Site) -> None:
    await asyncio.gather(*(site.stop(signal.SIGKILL) for site in sites))


async def test_what_one_site_fetched_is_found_and_fetched_after_founder_and_publisher_died(tmp_path: Path) -> None:
    founder, a, b, c = (store_site(tmp_path, name) for name in ("founder", "a", "b", "c"))
    async with running_sites(founder, a, b, c):
        published = await ask(a, "publish", str(WORD_COUNT))
        await b.cornerstore("fetch", "wc01", "-o", str(tmp_path / "b.csar"))
        await kill(founder, a)
        found = await ask(c, "search", "--category", "/text")
        assert [service["digest"] for service in found] == [published["digest"]]
        await c.cornerstore("fetch", "wc01", "-o", str(tmp_path / "c.csar"))
        assert (tmp_path / "c.csar").read_bytes() == (tmp_path / "b.csar").read_bytes()


@pytest.mark.docker
@pytest.mark.usefixtures("base_image")
async def test_what_one_site_runs_is_cold_started_after_founder_and_publisher_died(tmp_path: Path) -> None:
    founder, a = store_site(tmp_path, "founder"), store_site(tmp_path, "a")
    b, c = running_site(tmp_path, "b"), running_site(tmp_path, "c")
    async with running_sites(founder, a, b, c):
        await ask(a, "publish", str(WORD_COUNT))
        async with ControllerClient(b.running.rest) as at_b, ControllerClient(c.running.rest) as at_c:
            await until(lambda: have_agent(at_b), timeout_s=20)
            await until(lambda: have_agent(at_c), timeout_s=20)
            at_home = await at_b.start(StartRequest(service="wc01"))
            await kill(founder, a)
            cold = await at_c.start(StartRequest(service="wc01"))
            assert (cold.start, cold.region) == ("cold", "test/c")
            assert cold.service.digest == at_home.service.digest
            async with (
                aiohttp.ClientSession() as session,
                session.post(f"{cold.url}/wordcount", data="no site is needed") as response,
            ):
                assert int(await response.text()) == 4
            for client, answer in ((at_b, at_home), (at_c, cold)):
                await client.remove(answer.instance, answer.lease.token)
