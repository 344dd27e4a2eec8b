"""Nodes as processes with a real engine: faults of the machine, and what the client is told."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import aiohttp
import docker
import pytest

from client.controller import ControllerClient
from node.local_mesh import Site, up
from protocol.instances import StartAnswer, StartRequest, State
from protocol.problems import BuildFailed, NoCapacity, Problem
from tests.local_sites import WORD_COUNT, ask, have_agent, running_sites, service_folder
from tests.waiting import until

pytestmark = [pytest.mark.docker, pytest.mark.usefixtures("base_image")]
PATIENT_S = 20.0


def site_with_agent(folder: Path, *, docker_url: str = "", memory_mb: int = 512) -> Site:
    return Site(
        "a", "test/a", folder / "a", memory_mb=memory_mb, environment={"DOCKER_HOST": docker_url} if docker_url else {}
    )


async def remove_all(site: Site) -> None:
    """Containers outlive their node on purpose; tests leave none."""
    for view in await ask(site, "ps"):
        await site.cornerstore("rm", view["instance"])


async def count(answer: StartAnswer, text: str = "one two three") -> int:
    async with aiohttp.ClientSession() as session, session.post(f"{answer.url}/wordcount", data=text) as response:
        return int(await response.text())


async def test_fifty_phones_that_ask_for_one_cold_service_cause_one_start(
    tmp_path: Path, engine: docker.DockerClient
) -> None:
    site = site_with_agent(tmp_path)
    async with running_sites(site), ControllerClient(site.running.rest) as client:
        await ask(site, "publish", str(WORD_COUNT))
        await until(lambda: have_agent(client))
        answers = await asyncio.gather(*(client.start(StartRequest(service="wc01")) for _ in range(50)))
        assert len({a.instance for a in answers}) == 1
        assert len({a.lease.token for a in answers}) == 50
        assert len(engine.containers.list(filters={"label": f"cornerstore.instance={answers[0].instance}"})) == 1
        assert await count(answers[0]) == 3
        await remove_all(site)


async def test_a_killed_node_adopts_its_container_and_keeps_its_time(
    tmp_path: Path, engine: docker.DockerClient
) -> None:
    site = site_with_agent(tmp_path)
    async with running_sites(site):
        await ask(site, "publish", str(WORD_COUNT))
        async with ControllerClient(site.running.rest) as client:
            await until(lambda: have_agent(client))
            answer = await client.start(StartRequest(service="wc01", alive_time=600))
            before = await client.instance(answer.instance)
        (container,) = engine.containers.list(filters={"label": f"cornerstore.instance={answer.instance}"})
        await site.stop(signal.SIGKILL)
        async with up(site), ControllerClient(site.running.rest) as client:

            async def known_again() -> bool:
                return (await client.instance(answer.instance)).state == State.RUNNING

            await until(known_again, timeout_s=PATIENT_S)
            after = await client.instance(answer.instance)
            assert (after.url, after.expires_at) == (before.url, before.expires_at)
            assert await count(answer) == 3
            container.reload()
            assert container.status == "running"
            # The lease that was given before still opens the door.
            assert (await client.stop(answer.instance, answer.lease.token)).state == State.STOPPED
            await remove_all(site)


async def test_a_build_that_fails_says_so_with_its_last_lines(tmp_path: Path) -> None:
    site = site_with_agent(tmp_path)
    broken = "FROM cornerstore/python:3.11\nRUN echo about to fail && false\n"
    async with running_sites(site), ControllerClient(site.running.rest) as client:
        await ask(site, "publish", str(service_folder(tmp_path, name="broken", dockerfile=broken)))
        await until(lambda: have_agent(client))
        with pytest.raises(BuildFailed) as caught:
            await client.start(StartRequest(service="broken"))
        assert any("about to fail" in line for line in caught.value.extra["log"])
        with pytest.raises(BuildFailed):  # the failure of before does not stand in the way of a new try
            await client.start(StartRequest(service="broken"))
        assert (await client.agents())[0].memory_free == 512


async def test_a_service_that_ends_at_once_is_told_with_its_log(tmp_path: Path) -> None:
    site = site_with_agent(tmp_path)
    ends = 'FROM cornerstore/python:3.11\nCMD ["python", "-c", "print(\'cannot go on\'); raise SystemExit(3)"]\n'
    async with running_sites(site), ControllerClient(site.running.rest) as client:
        await ask(site, "publish", str(service_folder(tmp_path, name="ends", dockerfile=ends)))
        await until(lambda: have_agent(client))
        with pytest.raises(Problem) as caught:
            await client.start(StartRequest(service="ends"))
        assert caught.value.slug == "start-failed"
        assert any("cannot go on" in line for line in caught.value.extra["log"])


async def test_without_docker_the_region_says_what_is_missing(tmp_path: Path) -> None:
    site = site_with_agent(tmp_path, docker_url=f"unix://{tmp_path}/no-docker.sock")
    async with running_sites(site), ControllerClient(site.running.rest) as client:
        await ask(site, "publish", str(WORD_COUNT))
        await until(lambda: have_agent(client))
        with pytest.raises(NoCapacity) as caught:
            await client.start(StartRequest(service="wc01"))
        assert "docker" in caught.value.extra["regions"]["test/a"].lower()
        assert "no Docker engine answers" in site.log.read_text()


async def test_a_controller_that_restarts_still_knows_agents_and_instances(tmp_path: Path) -> None:
    controller = Site("c", "test/c", tmp_path / "c", roles=("controller", "store"))
    agent = Site("g", "test/c", tmp_path / "g", roles=("agent", "store"), memory_mb=512)
    async with running_sites(controller, agent):
        await ask(controller, "publish", str(WORD_COUNT))
        async with ControllerClient(controller.running.rest) as client:
            await until(lambda: have_agent(client), timeout_s=PATIENT_S)
            answer = await client.start(StartRequest(service="wc01"))
        await controller.stop()
        async with up(controller), ControllerClient(controller.running.rest) as client:
            await until(lambda: have_agent(client), timeout_s=PATIENT_S)

            async def known_again() -> bool:
                return (await client.instance(answer.instance)).state == State.RUNNING

            await until(known_again, timeout_s=PATIENT_S)
            warm = await client.start(StartRequest(service="wc01"))
            assert (warm.start, warm.instance) == ("warm", answer.instance)
            assert (await client.alive(answer.instance, answer.lease.token)).state == State.RUNNING
            await remove_all(controller)
