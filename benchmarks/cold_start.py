"""Cold start with the image present: from the request to the first answered byte, beside `docker run`.

Ours: `POST /v1/instances` at the controller, then `GET /` of the service until it answers, new instance each time.
Reference: `docker run -d` of the same image, then `GET /` at the container's own address until it answers.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable

import aiohttp

from benchmarks.one_site import one_site
from benchmarks.report import finish, median_ratio, summary
from client.controller import ControllerClient
from protocol.instances import PHASES, StartAnswer, StartRequest

RUNS = 12
PATIENCE_S = 30.0


async def until_answered(session: aiohttp.ClientSession, url: str) -> None:
    """Ask until the service answers 200. Raises TimeoutError after `PATIENCE_S`."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                async with session.get(url) as response:
                    if response.status == 200:
                        return
            except aiohttp.ClientError:
                await asyncio.sleep(0.002)


async def measured(action: Callable[[], Awaitable[None]]) -> float:
    began = time.perf_counter()
    await action()
    return (time.perf_counter() - began) * 1e3


def docker(*arguments: str) -> str:
    return subprocess.run(["docker", *arguments], check=True, capture_output=True, text=True).stdout.strip()


async def main() -> None:
    ours: list[float] = []
    reference: list[float] = []
    phases: dict[str, list[float]] = {p: [] for p in PHASES}
    async with one_site() as (_, client), aiohttp.ClientSession() as session:
        first = await client.start(StartRequest(service="wc01"))
        print(f"first start, building the image: {first.timings_ms}", file=sys.stderr)
        await client.remove(first.instance, first.lease.token)
        image = f"cornerstore/svc:{first.service.digest.removeprefix('sha256:')[:32]}"
        for run in range(RUNS):
            last: list[StartAnswer] = []
            ours.append(await measured(lambda last=last: _ours(client, session, last)))
            for phase in PHASES:
                phases[phase].append(last[0].timings_ms.get(phase, 0.0))
            await client.remove(last[0].instance, last[0].lease.token)
            started: list[str] = []
            reference.append(await measured(lambda started=started: _docker_run(session, image, started)))
            docker("rm", "-f", started[0])
            print(f"run {run}: ours {ours[-1]:.0f} ms, docker run {reference[-1]:.0f} ms", file=sys.stderr)
    finish(
        "cold-start",
        runs=RUNS,
        ours={"word_count_ms": summary(ours), "phases_ms": {p: summary(v)["p50"] for p, v in phases.items()}},
        reference={"docker_run_ms": summary(reference)},
        ratios={"word_count": median_ratio(ours, reference)},
    )


async def _ours(client: ControllerClient, session: aiohttp.ClientSession, out: list[StartAnswer]) -> None:
    answer = await client.start(StartRequest(service="wc01"))
    await until_answered(session, f"http://{answer.host}:{answer.port}/")
    out.append(answer)


async def _docker_run(session: aiohttp.ClientSession, image: str, out: list[str]) -> None:
    run = ["run", "-d", "--init", "--memory", "64m", "-e", "name=reference", image]
    container = await asyncio.to_thread(docker, *run)
    address = await asyncio.to_thread(
        docker, "inspect", "-f", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", container
    )
    port = await asyncio.to_thread(
        docker, "inspect", "-f", "{{range $p, $_ := .Config.ExposedPorts}}{{$p}} {{end}}", image
    )
    await until_answered(session, f"http://{address}:{port.split('/')[0]}/")
    out.append(container)


if __name__ == "__main__":
    asyncio.run(main())
