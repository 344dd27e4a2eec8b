"""The engine of a site dies in the middle of a start, and comes back."""

from __future__ import annotations

import asyncio
import subprocess
import time
from pathlib import Path

import pytest

from node.local_mesh import Site
from protocol.problems import Problem
from tests.local_sites import WORD_COUNT, ask, running_sites, service_folder
from tests.multihost.testbed import running_testbed
from tests.waiting import until

pytestmark = [pytest.mark.netns, pytest.mark.docker, pytest.mark.timeout(180)]

FILES = 'FROM cornerstore/python:3.11\nCMD ["python", "-m", "http.server", "8080", "--bind", "0.0.0.0"]\n'
SLOW_BUILD = FILES.replace("CMD", "RUN sleep 8\nCMD")


async def test_an_engine_that_dies_mid_start_is_told_at_once_and_the_next_start_works(
    base_image_archive: Path, tmp_path: Path
) -> None:
    async with running_testbed({"a": ["node"]}) as bed:
        host = bed.host("a", "node")
        url = await bed.start_engine(host)
        subprocess.run(["docker", "-H", url, "load", "-i", str(base_image_archive)], check=True, capture_output=True)
        enter = ("nsenter", f"--net={host.path}")
        site = Site("a", "eu/a", bed.folder / "a", host=host.address, enter=enter, environment={"DOCKER_HOST": url})
        async with running_sites(site):
            # The controller listens inside the namespace: the client is the command line, run in there.
            await ask(site, "publish", str(service_folder(tmp_path, name="slow", dockerfile=SLOW_BUILD, mem=64)))
            await until(lambda: _has_agent(site))
            start = asyncio.create_task(ask(site, "start", "slow", "--wait", "60"))
            await until(lambda: "sleep 8" in _builds(url), timeout_s=20)
            await bed.stop_engine(host)  # the engine itself takes up to 15 s to end what it builds
            ended = time.monotonic()
            with pytest.raises(Problem) as caught:
                await start
            assert time.monotonic() - ended < 5
            # Another agent might have hosted it; there is none, and the region says what helps. In which words the end
            # shows first is the engine's: a broken answer, a killed build, a closed door.
            assert "no-capacity" in caught.value.detail
            assert "Start the container engine again" in caught.value.detail

            await bed.start_engine(host)
            await until(lambda: _offers_docker(site), timeout_s=20)  # the controller hears of it a moment later
            again = await ask(site, "start", "slow", "--wait", "60")
            assert again["start"] == "cold"
            await site.cornerstore("rm", again["instance"])


async def test_a_node_may_be_up_before_its_engine(base_image_archive: Path) -> None:
    async with running_testbed({"a": ["node"]}) as bed:
        host = bed.host("a", "node")
        url = await bed.start_engine(host)
        subprocess.run(["docker", "-H", url, "load", "-i", str(base_image_archive)], check=True, capture_output=True)
        await bed.stop_engine(host)
        enter = ("nsenter", f"--net={host.path}")
        site = Site("a", "eu/a", bed.folder / "a", host=host.address, enter=enter, environment={"DOCKER_HOST": url})
        async with running_sites(site):
            await ask(site, "publish", str(WORD_COUNT))
            await until(lambda: _has_agent(site))
            with pytest.raises(Problem, match="no runtime for docker_container"):
                await ask(site, "start", "wc01")
            await bed.start_engine(host)
            await until(lambda: _offers_docker(site), timeout_s=20)
            started = await ask(site, "start", "wc01")
            assert started["start"] == "cold"
            await site.cornerstore("rm", started["instance"])


async def test_what_an_engine_took_along_runs_again_when_it_is_back(base_image_archive: Path, tmp_path: Path) -> None:
    async with running_testbed({"a": ["node"]}) as bed:
        host = bed.host("a", "node")
        url = await bed.start_engine(host)
        subprocess.run(["docker", "-H", url, "load", "-i", str(base_image_archive)], check=True, capture_output=True)
        enter = ("nsenter", f"--net={host.path}")
        site = Site("a", "eu/a", bed.folder / "a", host=host.address, enter=enter, environment={"DOCKER_HOST": url})
        async with running_sites(site):
            await ask(site, "publish", str(service_folder(tmp_path, name="files", dockerfile=FILES, mem=64)))
            await until(lambda: _offers_docker(site))
            started = await ask(site, "start", "files", "--alive-time", "600")
            (before,) = await ask(site, "ps")
            await bed.stop_engine(host)
            # Not `failed` for a moment either: the engine ends its containers while it still answers.
            states = await _states_until(site, "unknown")
            assert states <= {"running", "unknown"}
            await bed.start_engine(host)
            states = await _states_until(site, "running")
            assert states <= {"unknown", "starting", "running"}
            (after,) = await ask(site, "ps")
            assert (after["url"], after["expires_at"]) == (before["url"], before["expires_at"])
            assert "Directory listing" in await bed.run(host, "curl", "-s", after["url"])
            await site.cornerstore("rm", started["instance"])


async def _states_until(site: Site, state: str) -> set[str]:
    """All states that the only instance was seen in until it was in this one."""
    seen: set[str] = set()

    async def reached() -> bool:
        (view,) = await ask(site, "ps")
        seen.add(view["state"])
        return state in seen

    await until(reached, timeout_s=30)
    return seen


async def _has_agent(site: Site) -> bool:
    return bool(await ask(site, "agents"))


async def _offers_docker(site: Site) -> bool:
    return any("docker" in agent["runtimes"] for agent in await ask(site, "agents"))


def _builds(url: str) -> str:
    """Commands of the containers in which the engine builds."""
    listed = subprocess.run(
        ["docker", "-H", url, "ps", "--no-trunc", "--format", "{{.Command}}"],
        capture_output=True,
        text=True,
        check=True,
    )
    return listed.stdout
