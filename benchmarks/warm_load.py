"""A thousand requests a second for a warm service, at a node that has one core, beside a web server that does nothing.

Requests come at even distances whatever becomes of those before (an open loop), over keep-alive connections, from
another core. A request that found no free moment counts from when it was due: so a stall is not hidden.
`p99_ms`: of the latency. `rps`: what was answered per second when as many as possible were asked (a closed loop).
`p99_over_bare`, `rps_over_bare`: over the same for an aiohttp server that answers the same bytes.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import msgspec
from aiohttp import web

from benchmarks.one_site import WORD_COUNT_MODULE, one_site
from benchmarks.report import finish, summary
from protocol.instances import StartRequest

RATE = 1000
SECONDS = 10.0
CONNECTIONS = 64
CLOSED = 16
"""Requests under way at once in the closed loop."""
ROUNDS = 3
BODY = b'{"service": "wc02"}'


async def main() -> None:
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise SystemExit("this needs two cores: one for the node, one for those who ask")
    latency: dict[str, list[float]] = {"ours": [], "bare": []}
    rates: dict[str, list[float]] = {"ours": [], "bare": []}
    async with one_site(WORD_COUNT_MODULE) as (site, client):
        answer = await client.start(StartRequest(service="wc02", alive_time=3600))
        assert site.process is not None
        pin(site.process.pid, cores[0])
        async with bare_server(msgspec.json.encode(answer), cores[0]) as bare, connections() as session:
            pin(os.getpid(), cores[1])
            for _ in range(ROUNDS):
                for name, url in (("ours", site.running.rest), ("bare", bare)):
                    latency[name] += await open_loop(session, f"{url}/v1/instances")
                    rates[name].append(await closed_loop(session, f"{url}/v1/instances"))
                    p99, rate = summary(latency[name])["p99"], rates[name][-1]
                    print(f"{name}: p99 {p99:.2f} ms, {rate:.0f} requests/s", file=sys.stderr)
    ours, theirs = summary(latency["ours"]), summary(latency["bare"])
    rps, bare_rps = summary(rates["ours"])["p50"], summary(rates["bare"])["p50"]
    finish(
        "warm-load",
        runs=ROUNDS,
        ours={"latency_ms": ours, "rps": rps},
        reference={"latency_ms": theirs, "rps": bare_rps},
        ratios={
            "p99_ms": ours["p99"],
            "rps": rps,
            "p99_over_bare": round(ours["p99"] / theirs["p99"], 3),
            "rps_over_bare": round(rps / bare_rps, 3),
        },
    )


def pin(pid: int, core: int) -> None:
    """Every thread of a process."""
    for thread in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(thread.name), {core})


@asynccontextmanager
async def connections() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=CONNECTIONS), headers={"Content-Type": "application/json"}
    ) as session:
        yield session


async def ask(session: aiohttp.ClientSession, url: str) -> None:
    async with session.post(url, data=BODY) as response:
        body = await response.read()
        if response.status != 200:
            raise RuntimeError(f"{url} answered {response.status}: {body[:200]!r}")


async def open_loop(session: aiohttp.ClientSession, url: str) -> list[float]:
    """The latency of each request in ms, counted from when it was due."""
    latency: list[float] = []

    async def asked(due: float) -> None:
        await ask(session, url)
        latency.append((time.perf_counter() - due) * 1e3)

    begin = time.perf_counter() + 0.1
    async with asyncio.TaskGroup() as tasks:
        for number in range(int(RATE * SECONDS)):
            due = begin + number / RATE
            if (wait_s := due - time.perf_counter()) > 0:
                await asyncio.sleep(wait_s)
            tasks.create_task(asked(due))
    return latency


async def closed_loop(session: aiohttp.ClientSession, url: str) -> float:
    """Requests per second."""
    ends = time.perf_counter() + SECONDS / 2
    answered = 0

    async def keep_asking() -> None:
        nonlocal answered
        while time.perf_counter() < ends:
            await ask(session, url)
            answered += 1

    began = time.perf_counter()
    await asyncio.gather(*(keep_asking() for _ in range(CLOSED)))
    return answered / (time.perf_counter() - began)


@asynccontextmanager
async def bare_server(answer: bytes, core: int) -> AsyncIterator[str]:
    """In a process of its own: the reference."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.warm_load", answer.decode()), stdout=asyncio.subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        url = (await process.stdout.readline()).decode().strip()
        pin(process.pid, core)
        yield url
    finally:
        process.terminate()
        await process.wait()


async def serve(answer: bytes) -> None:
    async def give(request: web.Request) -> web.Response:
        await request.read()
        return web.Response(body=answer, content_type="application/json")

    app = web.Application()
    app.router.add_post("/v1/instances", give)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    print(f"http://{host}:{port}", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    import uvloop

    uvloop.run(serve(sys.argv[1].encode()) if len(sys.argv) > 1 else main())
