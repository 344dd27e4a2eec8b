"""Nodes as processes, without any container engine: a WebAssembly service from publishing to its end."""

from __future__ import annotations

import asyncio
import io
import signal
from pathlib import Path

import aiohttp
import psutil
import pytest
from rich.console import Console

from client.controller import ControllerClient
from node.config import NodeConfig
from node.demo import demo
from node.local_mesh import Site, up
from protocol.instances import StartAnswer, StartRequest, State
from protocol.problems import NoCapacity
from tests.local_sites import SERVICES, WORD_COUNT, ask, have_agent, running_sites
from tests.waiting import until

pytestmark = pytest.mark.lan

MODULE = SERVICES / "word_count_wasm"
PATIENT_S = 20.0


@pytest.fixture(autouse=True)
def no_engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/no-docker.sock")


def site_of(folder: Path, name: str, *, memory_mb: int = 64) -> Site:
    return Site(name, f"test/{name}", folder / name, memory_mb=memory_mb)


async def count(answer: StartAnswer, text: str = "one two three") -> int:
    async with aiohttp.ClientSession() as session, session.post(f"{answer.url}/wordcount", data=text) as response:
        return int(await response.text())


def reads_archives(site: Site) -> bool:
    """The process that judges descriptions waits for the first one."""
    return any("csar.worker" in child.cmdline() for child in psutil.Process(site.running.pid).children())


async def test_cold_warm_expired_restarted_stopped(tmp_path: Path) -> None:
    a = site_of(tmp_path, "a")
    async with running_sites(a), ControllerClient(a.running.rest) as client:
        await until(lambda: reads_archives(a))
        await ask(a, "publish", str(MODULE))
        await until(lambda: have_agent(client))
        assert (await client.agents())[0].runtimes == ("wasm",)
        cold = await client.start(StartRequest(service="wc02", alive_time=2))
        assert (cold.start, await count(cold)) == ("cold", 3)
        warm = await client.start(StartRequest(category="/text", inputs=("text",), outputs=("integer",)))
        assert (warm.start, warm.instance, warm.url) == ("warm", cold.instance, cold.url)
        built = await client.start(StartRequest(service="wc02", parameters={}, force_rebuild=True, alive_time=600))
        assert built.start == "cold"
        assert built.instance != cold.instance

        async def expired() -> bool:
            view = await client.instance(cold.instance)
            return view.state == State.STOPPED and view.reason == "expired"

        await until(expired, timeout_s=PATIENT_S)
        view = await client.restart(cold.instance, cold.lease.token)
        assert (view.state, view.url) == (State.RUNNING, cold.url)
        assert await count(cold, "a b") == 2
        view = await client.stop(cold.instance, cold.lease.token)
        assert (view.state, view.reason) == (State.STOPPED, "stopped-by-client")


async def test_traffic_keeps_it_alive(tmp_path: Path) -> None:
    """A module cannot send alive messages: that it is used is all the sign there is."""
    a = site_of(tmp_path, "a")
    async with running_sites(a), ControllerClient(a.running.rest) as client:
        await ask(a, "publish", str(MODULE))
        await until(lambda: have_agent(client))
        answer = await client.start(StartRequest(service="wc02", alive_time=3))
        first = (await client.instance(answer.instance)).expires_at
        assert first is not None

        async def prolonged() -> bool:
            assert await count(answer) == 3
            expires_at = (await client.instance(answer.instance)).expires_at
            return expires_at is not None and expires_at > first + 3

        await until(prolonged, timeout_s=PATIENT_S, every_s=0.3)


async def test_after_kill_9_it_runs_again_at_its_address_and_keeps_its_time(tmp_path: Path) -> None:
    a = site_of(tmp_path, "a")
    async with running_sites(a):
        await ask(a, "publish", str(MODULE))
        async with ControllerClient(a.running.rest) as client:
            await until(lambda: have_agent(client))
            answer = await client.start(StartRequest(service="wc02", alive_time=600))
            before = await client.instance(answer.instance)
        await a.stop(signal.SIGKILL)
        async with up(a), ControllerClient(a.running.rest) as client:

            async def known_again() -> bool:
                return (await client.instance(answer.instance)).state == State.RUNNING

            await until(known_again, timeout_s=PATIENT_S)
            after = await client.instance(answer.instance)
            assert (after.url, after.expires_at) == (before.url, before.expires_at)
            assert await count(answer) == 3
            assert (await client.stop(answer.instance, answer.lease.token)).state == State.STOPPED


async def test_a_crowd_at_one_module_is_served(tmp_path: Path) -> None:
    a = site_of(tmp_path, "a")
    async with running_sites(a), ControllerClient(a.running.rest) as client:
        await ask(a, "publish", str(MODULE))
        await until(lambda: have_agent(client))
        answers = await asyncio.gather(*(client.start(StartRequest(service="wc02")) for _ in range(20)))
        assert len({answer.instance for answer in answers}) == 1
        texts = ["word " * n for n in range(1, 41)]
        assert await asyncio.gather(*(count(answers[0], text) for text in texts)) == list(range(1, 41))


async def test_an_operator_may_turn_it_off_and_containers_are_refused_by_name(tmp_path: Path) -> None:
    a = site_of(tmp_path, "a", memory_mb=256)
    await a.found("test")
    config = a.data_dir / "config.toml"
    async with up(a), ControllerClient(a.running.rest) as client:
        await ask(a, "publish", str(WORD_COUNT))
        await until(lambda: have_agent(client))
        with pytest.raises(NoCapacity) as caught:
            await client.start(StartRequest(service="wc01"))
        assert "docker_container (it has wasm)" in caught.value.extra["regions"]["test/a"]
    config.write_text(config.read_text().replace("[agent.wasm]\nenabled = true", "[agent.wasm]\nenabled = false"))
    assert not NodeConfig.load(a.data_dir).agent.wasm.enabled
    async with up(a), ControllerClient(a.running.rest) as client:
        await until(lambda: have_agent(client))
        assert (await client.agents())[0].runtimes == ()


async def test_the_demo_tells_its_whole_story_without_an_engine() -> None:
    told = io.StringIO()
    await demo(stay=False, console=Console(file=told, width=200))
    story = told.getvalue()
    for step in ("WebAssembly module instead", "handed off demo/c -> demo/b", "reason expired", "restarted: running"):
        assert step in story
    assert story.count("the service counted 11 words") == 3
