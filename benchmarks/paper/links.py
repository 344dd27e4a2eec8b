"""The emulated links: what each is meant to be, and what it was measured to be in this run.

    phone on WiFi ==cable== WAN ==cable== town, Ireland, US East: a node each
    phone on 4G   ==cable==  |
                             edge: node (controller, agent, engine), store in the same LAN

The rates of 4G are the paper's. It gives no round trips and no rates of the others, so those are our assumptions:
round trips as they are seen from central Germany, 802.11ac at a usual net rate.
"""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Mapping

from msgspec import Struct

from tests.multihost.cable import Line
from tests.multihost.testbed import Host, TestBed

LINES: Mapping[str, Line] = {
    "wifi": Line(delay_ms=1.5, rate_mbit=300, queue_ms=60),
    "4g": Line(delay_ms=20, rate_mbit=50, back_mbit=300, queue_ms=120),
    "town": Line(delay_ms=2, rate_mbit=300, queue_ms=60),
    "ireland": Line(delay_ms=17.5, rate_mbit=200, queue_ms=120),
    "us-east": Line(delay_ms=46, rate_mbit=200, queue_ms=200),
}
"""Of a phone or a site to the edge; a site's rate is the same both ways. The queue is one that slow start fits."""
LAN_MBIT = 1000.0
PINGS = 10
PROBE_S = 0.5
PROBE_PORT = 9000
BLOCK = 1 << 16


class Ends(Struct, frozen=True):
    """Up is towards the edge."""

    rtt_ms: float
    up_mbit: float
    down_mbit: float


class Measured(Struct, frozen=True):
    target: Ends
    measured: Ends


def target(name: str) -> Ends:
    if name not in LINES:
        return Ends(rtt_ms=0.2, up_mbit=LAN_MBIT, down_mbit=LAN_MBIT)
    line = LINES[name]
    return Ends(rtt_ms=2 * line.delay_ms, up_mbit=line.rate_mbit, down_mbit=line.back.rate_mbit)


async def limit_lan(bed: TestBed, host: Host) -> None:
    """A switch's port is a gigabit; veth would be as fast as the processor."""
    await bed.run(host, *f"tc qdisc replace dev eth0 root tbf rate {LAN_MBIT:g}mbit burst 256kb latency 50ms".split())


async def measure(bed: TestBed, name: str, there: Host, edge: Host) -> Measured:
    """Ping's mean, and a transfer of about PROBE_S each way after one that opened the window."""
    said = await bed.run(there, "ping", "-n", "-q", "-c", str(PINGS), "-i", "0.05", "-W", "3", edge.address)
    times = re.search(r"= [\d.]+/([\d.]+)/", said)
    if times is None:
        raise RuntimeError(f"no ping from {name} came back: {said}")
    wanted = target(name)
    up = await _throughput(bed, there, edge, "up", wanted.up_mbit)
    down = await _throughput(bed, there, edge, "down", wanted.down_mbit)
    return Measured(wanted, Ends(float(times[1]), round(up, 1), round(down, 1)))


async def _throughput(bed: TestBed, there: Host, edge: Host, way: str, rate_mbit: float) -> float:
    size = int(rate_mbit * 1e6 / 8 * PROBE_S)
    argv = [sys.executable, "-m", "benchmarks.paper.links", edge.address, way, str(size)]
    return float(await bed.run(there, *argv, timeout_s=60))


async def serve_probes() -> None:
    """On the edge: `up N` reads N bytes, `down N` sends them; a line feed ends either."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            way, size = line.decode().split()
            left = int(size)
            while left > 0:
                if way == "up":
                    left -= len(await reader.read(min(BLOCK, left))) or left
                else:
                    writer.write(bytes(min(BLOCK, left)))
                    left -= BLOCK
                    await writer.drain()
            writer.write(b"\n")
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "0.0.0.0", PROBE_PORT)
    print("ready", flush=True)
    await server.serve_forever()


async def probe(address: str, way: str, size: int) -> float:
    """Mbit/s of `size` bytes, until the last has arrived, on a connection that has carried as many before."""
    loop = asyncio.get_running_loop()
    reader, writer = await asyncio.open_connection(address, PROBE_PORT)
    for _ in range(2):
        began = loop.time()
        writer.write(f"{way} {size}\n".encode())
        if way == "up":
            for start in range(0, size, BLOCK):
                writer.write(bytes(min(BLOCK, size - start)))
                await writer.drain()
        else:
            await reader.readexactly(size)
        await reader.readline()
    writer.close()
    return size * 8e-6 / (loop.time() - began)


def main() -> None:
    if len(sys.argv) == 1:
        asyncio.run(serve_probes())
    else:
        print(asyncio.run(probe(sys.argv[1], sys.argv[2], int(sys.argv[3]))))


if __name__ == "__main__":
    main()
