"""How soon a service is stopped, and how soon its crash is noticed, beside what the engine itself takes.

`stop`: from `POST /v1/instances/ID/stop` until the client is told and the container does not run any more; the
reference is `docker stop -t 0` of the same image, seen from outside in the same way.
`crash`: from SIGKILL of the service's process until the controller shows `failed` with its reason; the reference is the
same for a container of ours beside it, until `docker events` tells its end.
The services are busybox's web server and the word count, which ends its requests first. Ours is an HTTP request, the
engine's a command of its client, which takes some 40 ms to begin and to end.
"""

from __future__ import annotations

import asyncio
import math
import os
import signal
import sys
import tempfile
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from benchmarks.cold_start_services import minimal
from benchmarks.containers import PATIENCE_S, docker, measured
from benchmarks.one_site import one_site
from benchmarks.report import finish, median_ratio, summary
from client.controller import ControllerClient
from protocol.instances import StartAnswer, StartRequest, State

RUNS = 20
STOP_AIM_MS = 300
CRASH_AIM_MS = 500
SETTLE_S = 0.3
LOOK_S = 0.005


class Bench:
    """The samples in ms, by what was measured."""

    def __init__(self, client: ControllerClient) -> None:
        self.client = client
        self.ours: dict[str, list[float]] = {}
        self.reference: dict[str, list[float]] = {}

    async def measure(self, service: str) -> None:
        first = await self.client.start(StartRequest(service=service, alive_time=3600, wait_s=PATIENCE_S))
        image = f"cornerstore/svc:{first.service.digest.removeprefix('sha256:')[:32]}"
        for _ in range(RUNS):
            await self.stop(service, first)
            await self.docker_stop(service, image)
            await self.client.restart(first.instance, first.lease.token)
            await self.crash(service, first)
            await self.docker_kill(service, image)
            await self.client.restart(first.instance, first.lease.token)
            await asyncio.sleep(SETTLE_S)
            said = ", ".join(
                f"{name} {samples[-1]:.0f} (engine {self.reference[name][-1]:.0f}) ms"
                for name, samples in self.ours.items()
                if name.endswith(service)
            )
            print(said, file=sys.stderr)
        await self.client.remove(first.instance, first.lease.token)

    async def stop(self, service: str, started: StartAnswer) -> None:
        pid = await asyncio.to_thread(pid_of, container_of(started))

        async def stopped() -> None:
            await self.client.stop(started.instance, started.lease.token)
            await until_gone(pid)

        self.ours.setdefault(f"stop_{service}", []).append(await measured(stopped))

    async def docker_stop(self, service: str, image: str) -> None:
        container = await asyncio.to_thread(run, image)
        pid = await asyncio.to_thread(pid_of, container)

        async def stopped() -> None:
            await asyncio.to_thread(docker, "stop", "-t", "0", container)
            await until_gone(pid)

        self.reference.setdefault(f"stop_{service}", []).append(await measured(stopped))
        docker("rm", "-f", container)

    async def crash(self, service: str, started: StartAnswer) -> None:
        pid = await asyncio.to_thread(pid_of, container_of(started))
        began = time.perf_counter()
        os.kill(pid, signal.SIGKILL)
        async with asyncio.timeout(PATIENCE_S):
            while (view := await self.client.instance(started.instance)).state != State.FAILED:
                await asyncio.sleep(LOOK_S)
        self.ours.setdefault(f"crash_{service}", []).append((time.perf_counter() - began) * 1e3)
        if view.reason != "exited 137":
            raise RuntimeError(f"the crash was told as {view.reason!r}")

    async def docker_kill(self, service: str, image: str) -> None:
        container = await asyncio.to_thread(run, image)
        pid = await asyncio.to_thread(pid_of, container)
        async with ends_of(container) as events:
            assert events.stdout is not None
            began = time.perf_counter()
            os.kill(pid, signal.SIGKILL)
            async with asyncio.timeout(PATIENCE_S):
                async for line in events.stdout:
                    if b" die " in line:
                        break
                else:
                    raise RuntimeError("the engine's events ended before the crash was among them")
            self.reference.setdefault(f"crash_{service}", []).append((time.perf_counter() - began) * 1e3)
        docker("rm", "-f", container)


def container_of(started: StartAnswer) -> str:
    return docker("ps", "-q", "--filter", f"label=cornerstore.instance={started.instance}")


def run(image: str) -> str:
    return docker("run", "-d", "--init", "--memory", "64m", "-e", "name=reference", image)


def pid_of(container: str) -> int:
    return int(docker("inspect", "-f", "{{.State.Pid}}", container))


async def until_gone(pid: int) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while Path(f"/proc/{pid}").exists():
            await asyncio.sleep(0.001)


@asynccontextmanager
async def ends_of(container: str) -> AsyncIterator[Process]:
    """`docker events`, which tells the end of this container, and by now listens."""
    filters = ("--filter", f"container={container}", "--filter", "event=die", "--filter", "event=rename")
    events = await asyncio.create_subprocess_exec("docker", "events", *filters, stdout=PIPE)
    assert events.stdout is not None
    try:
        async with asyncio.timeout(PATIENCE_S):
            heard = asyncio.create_task(events.stdout.readline())
            while not heard.done():  # a harmless event shows that it listens
                await asyncio.to_thread(docker, "rename", container, f"bench-{os.urandom(6).hex()}")
                await asyncio.wait({heard}, timeout=0.05)
        yield events
    finally:
        events.terminate()
        await events.wait()


async def main() -> None:
    with tempfile.TemporaryDirectory(prefix="cornerstore-bench-") as scratch:
        async with one_site() as (site, client):
            folder = minimal(Path(scratch) / "minimal")
            await site.cornerstore("--controller", site.running.rest, "publish", str(folder))
            bench = Bench(client)
            await bench.measure("minimal")
            await bench.measure("wc01")
    finish(
        "stop",
        runs=RUNS,
        ours={"ms": {name: {**summary(ours), "p95": p95(ours)} for name, ours in bench.ours.items()}},
        reference={"docker_ms": {name: {**summary(its), "p95": p95(its)} for name, its in bench.reference.items()}},
        ratios={
            **{f"{name}_over_engine": median_ratio(ours, bench.reference[name]) for name, ours in bench.ours.items()},
            **{f"{name}_p95_over_aim": round(p95(ours) / aim_of(name), 3) for name, ours in bench.ours.items()},
        },
    )


def aim_of(name: str) -> float:
    return STOP_AIM_MS if name.startswith("stop") else CRASH_AIM_MS


def p95(samples: list[float]) -> float:
    ordered = sorted(samples)
    return round(ordered[math.ceil(0.95 * len(ordered)) - 1], 3)


if __name__ == "__main__":
    asyncio.run(main())
