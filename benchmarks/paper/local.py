"""The phone's own processor: one core of ours, throttled. A baseline that is named as such, not a phone.

Method: a plain container of the service's image, pinned to one core (`--cpuset-cpus`), with CFS bandwidth control of
the Linux scheduler (`--cpu-period` 10 ms, `--cpu-quota`). The quota is calibrated: under it, a processor-bound loop
takes as many times the processor time that it needs at full speed as is wanted. The service is installed and runs
already, and is called without any link; so what is compared with offloading is the work alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from msgspec import Struct

from benchmarks.paper.cases import Case
from benchmarks.paper.phone import Order
from benchmarks.paper.runs import Run
from benchmarks.paper.stage import Stage
from node.local_mesh import BASE_IMAGE
from tests.waiting import until

PERIOD_US = 10_000
CORE = ("--cpuset-cpus", "0", "--cpu-period", str(PERIOD_US))
LOOP = """import time
def work():
    began, cpu = time.perf_counter(), time.process_time()
    for _ in range(40):
        sum(n * n for n in range(100_000))
    return time.perf_counter() - began, time.process_time() - cpu
work()
print(*work())
"""
"""Prints the seconds that it took, and those of its processor."""
TRIES = 3
CLOSE = 0.05


class Calibrated(Struct, frozen=True):
    """`quota_us` of each PERIOD_US makes the loop take `measured` times longer."""

    target: float
    measured: float
    quota_us: int


async def calibrate(there: Stage, slowdown: float) -> Calibrated:
    """The quota that comes closest in a few tries."""
    _, full = await _loop_s(there, PERIOD_US)
    quota = round(PERIOD_US / slowdown)
    found = []
    for _ in range(TRIES):
        measured = (await _loop_s(there, quota))[0] / full
        found.append(Calibrated(slowdown, round(measured, 2), quota))
        if abs(measured / slowdown - 1) < CLOSE:
            break
        quota = max(1000, min(PERIOD_US, round(quota * measured / slowdown)))  # the kernel's least is 1 ms
    return min(found, key=lambda one: abs(one.measured - slowdown))


async def _loop_s(there: Stage, quota_us: int) -> tuple[float, float]:
    loop = ("python3", "-c", LOOP)
    said = await docker(there, "run", "--rm", *CORE, f"--cpu-quota={quota_us}", BASE_IMAGE, *loop)
    wall, cpu = said.split()
    return float(wall), float(cpu)


async def docker(there: Stage, *arguments: str) -> str:
    host = there.bed.host("edge", "node")
    return (await there.bed.run(host, "docker", "-H", there.engine, *arguments, timeout_s=120)).strip()


async def image_of(there: Stage, instance: str) -> str:
    """The image that an instance runs, by the label of its container."""
    container = await docker(there, "ps", "-q", "--filter", f"label=cornerstore.instance={instance}")
    return await docker(there, "inspect", "-f", "{{.Image}}", container)


@asynccontextmanager
async def installed(there: Stage, case: Case, image: str, port: int) -> AsyncIterator[Installed]:
    """The service on the phone, started at full speed and called once."""
    container = await docker(there, "run", "-d", *CORE, "--add-host=agent:127.0.0.1", image)
    try:
        address = await docker(there, "inspect", "-f", "{{.NetworkSettings.IPAddress}}", container)
        service = Installed(there, case, container, f"{address}:{port}")
        await until(service.answers, timeout_s=60, every_s=0.1)
        yield service
    finally:
        await asyncio.shield(docker(there, "rm", "-f", container))


class Installed:
    def __init__(self, there: Stage, case: Case, container: str, address: str) -> None:
        self._there = there
        self._case = case
        self._container = container
        self._order = Order(do="call", at=address)

    async def answers(self) -> bool:
        try:
            await self._there.call(self._there.hands["colocated"], self._case, self._order)
        except RuntimeError:
            return False
        return True

    async def run(self, throttle: Calibrated) -> Run:
        await docker(self._there, "update", f"--cpu-quota={throttle.quota_us}", self._container)
        report = await self._there.call(self._there.hands["colocated"], self._case, self._order)
        return Run(service=self._case.name, mode="local", phases=report.phases, slowdown=throttle.target)
