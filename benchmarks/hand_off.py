"""What a hand-off costs: a phone asks a region that has no agent, and a region beside it runs the service already.

`hop_ms`: the median request through the region that hands off, less the median request to the region that hosts, less
the round trip between the two (on loopback: one byte each way), all in turn.
`hop_p99_ms`: the same of the 99th percentiles.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from msgspec.structs import replace

from benchmarks.containers import measured
from benchmarks.one_site import WORD_COUNT_MODULE
from benchmarks.report import finish, summary
from client.controller import ControllerClient
from node.config import NodeConfig
from node.local_mesh import Site, up
from protocol.instances import StartRequest

RUNS = 1000
WARM_UP = 50
REQUEST = StartRequest(service="wc02")


async def main() -> None:
    through: list[float] = []
    direct: list[float] = []
    trips: list[float] = []
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cornerstore-bench-")))
        host = Site("host", "bench/host", folder / "host")
        asked = Site("asked", "bench/asked", folder / "asked", roles=("controller", "store"))
        await host.found("bench")
        unlimited(host)
        await stack.enter_async_context(up(host))
        await asked.join(await host.invite(asked))
        unlimited(asked)
        await stack.enter_async_context(up(asked))
        await host.cornerstore("--controller", host.running.rest, "publish", str(WORD_COUNT_MODULE))
        at_host = await stack.enter_async_context(ControllerClient(host.running.rest))
        at_asked = await stack.enter_async_context(ControllerClient(asked.running.rest))
        reader, writer = await stack.enter_async_context(echo())
        for run in range(WARM_UP + RUNS):
            took = [
                await measured(lambda: handed_off(at_asked)),
                await measured(lambda: hosted(at_host)),
                await measured(lambda: round_trip(reader, writer)),
            ]
            if run >= WARM_UP:
                for samples, value in zip((through, direct, trips), took, strict=True):
                    samples.append(value)
    ours, reference, trip = summary(through), summary(direct), summary(trips)
    finish(
        "hand-off",
        runs=RUNS,
        ours={"handed_off_ms": ours},
        reference={"hosted_ms": reference, "round_trip_ms": trip},
        ratios={
            "hop_ms": round(ours["p50"] - reference["p50"] - trip["p50"], 3),
            "hop_p99_ms": round(ours["p99"] - reference["p99"] - trip["p50"], 3),
        },
    )


def unlimited(site: Site) -> None:
    """One phone asks as fast as it can."""
    config = NodeConfig.load(site.data_dir)
    replace(config, controller=replace(config.controller, starts_per_client_s=0.0)).save(site.data_dir)


async def handed_off(client: ControllerClient) -> None:
    answer = await client.start(REQUEST)
    if answer.handoff != ("bench/asked",):
        raise RuntimeError(f"it was not handed off: {answer.why}")


async def hosted(client: ControllerClient) -> None:
    answer = await client.start(REQUEST)
    if answer.handoff:
        raise RuntimeError(f"it was handed off: {answer.why}")


@asynccontextmanager
async def echo() -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection on loopback to somebody who sends every byte back."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while byte := await reader.read(1):
            writer.write(byte)
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname()[:2])
        yield reader, writer
        writer.close()


async def round_trip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b".")
    await reader.readexactly(1)


if __name__ == "__main__":
    asyncio.run(main())
