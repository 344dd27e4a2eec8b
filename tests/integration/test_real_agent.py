"""The real agent on the real link, with the runtime that needs no engine: what a phone gets answers."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import msgspec
from msgspec import structs

from agent.agent import AgentConfig, running_agent
from agent.link import KnownControllers
from agent.memory_runtime import MemoryRuntime
from dht.peer_http import PeerHttp
from protocol.instances import StartRequest, State
from protocol.service import Allowed, ContainerPort, Relaxations, ServiceDescriptor, Variant
from region_controller import Caller
from tests.one_region import OPERATOR, Site, an_archive, describe, node_of, running_site
from tests.waiting import until

SERVICE = ServiceDescriptor(
    id="echo",
    name="echo",
    kind="docker_container",
    category="/test",
    mem_requirement=64,
    entry="x.yaml",
    ports=(ContainerPort(18_080),),
)


@asynccontextmanager
async def linked_agent(folder: Path, site: Site, runtime: MemoryRuntime) -> AsyncIterator[None]:
    node = node_of("real agent")
    region = site.controller.config.region
    address = site.peer.removeprefix("http://")

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        alive_port = probe.getsockname()[1]
    async with (
        aiohttp.ClientSession(headers={"Test-Peer": f"{node} demo {region} agent"}) as session,
        running_agent(
            AgentConfig(host="127.0.0.1", database=folder / "agent.sqlite", memory_mb=200, alive_port=alive_port),
            node=node,
            mesh="demo",
            region=region,
            runtimes=[runtime],
            content=site.content,
            describe=describe,
            http=PeerHttp(session, None),
            locator=KnownControllers(address),
        ),
    ):
        await until(site.controller.agents)
        yield


async def answer_of(url: str | None) -> str:
    assert url is not None
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        return await response.text()


async def test_from_upload_to_answer_and_back(tmp_path: Path) -> None:
    runtime = MemoryRuntime(node_of("real agent"))
    async with running_site(tmp_path) as site:
        data = an_archive(tmp_path, SERVICE)
        headers = {"Authorization": f"Bearer {OPERATOR}"}
        async with site.phone.post("/v1/services", data=data, headers=headers) as response:
            assert response.status == 201, await response.text()
        async with linked_agent(tmp_path, site, runtime):
            steps: list[str] = []
            cold, was_cold = await site.controller.start(StartRequest(service="echo"), lambda s: steps.append(s.phase))
            assert was_cold
            assert cold.instance in await answer_of(cold.url)
            assert {"resolve", "place", "build"} <= set(steps), steps
            warm, was_cold = await site.controller.start(StartRequest(service="echo"))
            assert (was_cold, warm.instance) == (False, cold.instance)
            await site.controller.stop(cold.instance, Caller(cold.lease.token))
            mine = Caller(warm.lease.token)
            assert (await site.controller.stop(cold.instance, mine)).state is State.STOPPED
            restarted = await site.controller.restart(cold.instance, mine)
            assert restarted.url == cold.url
            assert cold.instance in await answer_of(cold.url)
        await until(lambda: not site.controller.agents())
        assert (await site.controller.instance(cold.instance)).state is State.UNKNOWN
        async with linked_agent(tmp_path, site, runtime):
            assert (await site.controller.instance(cold.instance)).state is State.RUNNING
            assert (await site.controller.remove(cold.instance, mine)).state is State.REMOVED
            assert site.controller.instances() == []


async def test_it_expires_and_says_so(tmp_path: Path) -> None:
    async with running_site(tmp_path) as site, linked_agent(tmp_path, site, MemoryRuntime(node_of("real agent"))):
        data = an_archive(tmp_path, SERVICE)
        headers = {"Authorization": f"Bearer {OPERATOR}"}
        async with site.phone.post("/v1/services", data=data, headers=headers) as response:
            digest = msgspec.json.decode(await response.read())["digest"]
        answer, _ = await site.controller.start(StartRequest(service=digest, alive_time=1))

        async def ended() -> bool:
            return (await site.controller.instance(answer.instance)).state is State.STOPPED

        await until(ended)
        again, cold = await site.controller.start(StartRequest(service=digest))
        assert cold
        assert again.instance in await answer_of(again.url)
        for view in site.controller.instances():
            assert (await site.controller.remove(view.instance, Caller(operator=True))).state is State.REMOVED


async def test_what_the_region_allows_reaches_its_agents_and_what_it_does_not_is_refused_by_name(
    tmp_path: Path,
) -> None:
    modest = structs.replace(
        SERVICE, id="modest", relaxations=Relaxations(("SETUID",)), variants={"precise": Variant(accuracy=0.9)}
    )
    greedy = structs.replace(SERVICE, id="greedy", relaxations=Relaxations(("SETUID", "KILL")))
    async with (
        running_site(tmp_path, allowed=Allowed(("SETUID",), 256)) as site,
        linked_agent(tmp_path, site, MemoryRuntime(node_of("real agent"))),
    ):
        for descriptor in (modest, greedy):
            data = an_archive(tmp_path, descriptor)
            headers = {"Authorization": f"Bearer {OPERATOR}"}
            async with site.phone.post("/v1/services", data=data, headers=headers) as response:
                assert response.status == 201, await response.text()
        answer, _ = await site.controller.start(StartRequest(service="modest", variant="precise"))
        assert (await site.controller.instance(answer.instance)).variant == "precise"
        async with site.phone.post("/v1/instances", json={"service": "greedy"}) as response:
            problem = await response.json(content_type=None)
        assert (response.status, problem["type"].rpartition("/")[2]) == (403, "relaxation-refused")
        assert "KILL" in str(problem["regions"])
        assert "[controller]" in problem["fix"]
        assert "Retry-After" not in response.headers
        await site.controller.remove(answer.instance, Caller(operator=True))
