"""The phone: a process in a network namespace of its own that does what it is told, through the client library.

It reads one JSON order a line and answers each with one line: the phases of the run as the phone saw them. So the
clock, the bytes and the processor time are those of the phone alone. Each run opens new connections.

    python -m benchmarks.paper.phone
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Literal

import msgspec
import structlog
from msgspec import Struct

from benchmarks.paper.runs import Phase
from client.controller import ControllerClient
from protocol.instances import Lease, ServiceRef, StartAnswer, StartRequest
from protocol.problems import Problem
from tests.multihost.testbed import REPOSITORY, Host

WAIT_S = 180.0


class Order(Struct, frozen=True, kw_only=True):
    """What to `do`: upload sends `archive` and its signed `record`, starts it and calls it; start asks for `service`, a
    digest, and calls it; call uses the address `at`, and no controller. The service's reply goes to the file `reply`.

    Not measured: remove ends `instance`; publish only sends, fetch brings `service` to the controller, show asks
    whether it is found there.
    """

    do: Literal["upload", "start", "call", "remove", "publish", "fetch", "show"]
    controller: str = ""
    archive: str = ""
    record: bytes = b""
    service: str = ""
    path: str = ""
    body: str = ""
    reply: str = ""
    at: str = ""
    instance: str = ""
    token: str = ""


class Report(Struct, frozen=True, kw_only=True):
    """`error`: what went wrong, in words; then nothing else counts."""

    phases: tuple[Phase, ...] = ()
    edge_ms: dict[str, float] = {}
    start: str = ""
    instance: str = ""
    token: str = ""
    container_port: int = 0
    url: str = ""
    error: str = ""


class Stopwatch:
    """Seconds, bytes on the link and processor time of each phase."""

    def __init__(self) -> None:
        self.phases: list[Phase] = []

    @contextmanager
    def phase(self, name: str, *, waits: bool = False) -> Iterator[None]:
        (up, down), cpu, began = link_bytes(), time.process_time(), time.perf_counter()
        yield
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
        up_after, down_after = link_bytes()
        self.phases.append(Phase(name, round(seconds, 6), up_after - up, down_after - down, round(cpu, 6), waits))


def link_bytes() -> tuple[int, int]:
    """Sent and received by this network namespace's `eth0` so far, headers included."""
    for line in Path("/proc/self/net/dev").read_text().splitlines():
        name, _, counters = line.partition(":")
        if name.strip() == "eth0":
            fields = counters.split()
            return int(fields[8]), int(fields[0])
    return 0, 0


async def carry_out(order: Order) -> Report:
    async with ControllerClient(order.controller or "http://127.0.0.1") as client:
        match order.do:
            case "remove":
                await client.remove(order.instance, order.token)
            case "publish":
                await client.publish(Path(order.archive), order.record)
            case "fetch":
                await client.fetch(order.service, Path(order.reply))
            case "show":
                await client.service(order.service)
            case _:
                return await offload(client, order)
    return Report()


async def offload(client: ControllerClient, order: Order) -> Report:
    watch = Stopwatch()
    body = await asyncio.to_thread(Path(order.body).read_bytes)
    if order.do == "call":
        answer = at_address(order.at)
    else:
        if order.do == "upload":
            with watch.phase("upload"):
                await client.publish(Path(order.archive), order.record)
        with watch.phase("start", waits=True):
            answer = await client.start(StartRequest(service=order.service, alive_time=0, wait_s=WAIT_S))
    with watch.phase("call"):
        reply = await client.invoke(answer, order.path, body)
    await asyncio.to_thread(Path(order.reply).write_bytes, reply)
    return Report(
        phases=tuple(watch.phases),
        edge_ms=answer.timings_ms,
        start=answer.start,
        instance=answer.instance,
        token=answer.lease.token,
        container_port=answer.ports[0].container_port if answer.ports else 0,
        url=answer.url or "",
    )


def at_address(address: str) -> StartAnswer:
    """An answer that nobody gave, for a service that is reached without a controller."""
    host, _, port = address.rpartition(":")
    nobody = ServiceRef("", "", "")
    return StartAnswer(
        instance="local",
        service=nobody,
        start="warm",
        region="",
        agent="",
        host=host,
        port=int(port),
        ports=(),
        url=f"http://{address}",
        lease=Lease("local"),
    )


async def serve() -> None:
    for line in iter(sys.stdin.readline, ""):
        try:
            report = await carry_out(msgspec.json.decode(line, type=Order))
        except Problem as problem:
            report = Report(error=msgspec.json.encode(problem.to_dict()).decode())
        except OSError as error:
            report = Report(error=str(error) or type(error).__name__)
        print(msgspec.json.encode(report).decode(), flush=True)


class Phone:
    """The other end, in the benchmark's process. Made by `running_phone`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def do(self, order: Order) -> Report:
        """Raises RuntimeError with the phone's words if it failed."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(msgspec.json.encode(order) + b"\n")
        await self._process.stdin.drain()
        line = await self._process.stdout.readline()
        report = msgspec.json.decode(line, type=Report) if line else Report(error="the phone's process ended")
        if report.error:
            raise RuntimeError(f"{order.do} of {order.service or order.archive or order.at}: {report.error}")
        return report


@asynccontextmanager
async def running_phone(host: Host, prefix: Sequence[str] = ()) -> AsyncIterator[Phone]:
    """A phone on the host; `prefix` goes before its command."""
    process = await asyncio.create_subprocess_exec(
        *prefix,
        *("nsenter", f"--net={host.path}", sys.executable, "-m", "benchmarks.paper.phone"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    try:
        yield Phone(process)
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()


if __name__ == "__main__":
    # Standard output is for reports; retries need not be told.
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    asyncio.run(serve())
