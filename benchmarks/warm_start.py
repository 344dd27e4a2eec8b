"""Warm start: from the request to the location at the controller, and to the result, beside calling the container.

`p50_ms`, `p99_ms`: `POST /v1/instances` over loopback for a service that runs.
`over_direct_call`: request to location plus the call through the agent's port proxy, over the same call made directly
to the container's own address.
"""

from __future__ import annotations

import asyncio
import time

import aiohttp

from benchmarks.containers import docker
from benchmarks.one_site import one_site
from benchmarks.report import finish, median_ratio, summary
from protocol.instances import StartRequest

RUNS = 500
TEXT = b"the quick brown fox jumps over the lazy dog " * 100


async def main() -> None:
    location: list[float] = []
    whole: list[float] = []
    direct: list[float] = []
    async with one_site() as (_, client), aiohttp.ClientSession() as session:
        answer = await client.start(StartRequest(service="wc01"))
        container = docker("ps", "-q", "--filter", f"label=cornerstore.instance={answer.instance}")
        # A container that joined a waiting network has that one's address.
        joined = docker("inspect", "-f", "{{.HostConfig.NetworkMode}}", container).removeprefix("container:")
        owner = joined if len(joined) == 64 else container
        address = docker("inspect", "-f", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", owner)
        own = f"http://{address}:{answer.ports[0].container_port}/wordcount"
        for _ in range(RUNS):
            began = time.perf_counter()
            warm = await client.start(StartRequest(service="wc01"))
            located = time.perf_counter()
            await call(session, f"http://{warm.host}:{warm.port}/wordcount")
            done = time.perf_counter()
            await call(session, own)
            location.append((located - began) * 1e3)
            whole.append((done - began) * 1e3)
            direct.append((time.perf_counter() - done) * 1e3)
            if warm.start != "warm":
                raise RuntimeError(f"a {warm.start} start was measured")
    latency = summary(location)
    finish(
        "warm-start",
        runs=RUNS,
        ours={"location_ms": latency, "location_and_call_ms": summary(whole)},
        reference={"direct_call_ms": summary(direct)},
        ratios={
            "p50_ms": latency["p50"],
            "p99_ms": latency["p99"],
            "over_direct_call": median_ratio(whole, direct),
        },
    )


async def call(session: aiohttp.ClientSession, url: str) -> None:
    async with session.post(url, data=TEXT) as response:
        if response.status != 200 or int(await response.text()) != 900:
            raise RuntimeError(f"{url} answered {response.status}")


if __name__ == "__main__":
    asyncio.run(main())
