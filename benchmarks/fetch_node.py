"""A node in a process of its own that a benchmark commands: one JSON object a line in, one a line out.

python -m benchmarks.fetch_node DATA_DIR          the node of that folder, as `cornerstore up` runs it
python -m benchmarks.fetch_node --plain FOLDER    content over plain HTTP, without records: what TLS costs

{"add": PATH}                         {"digest": ...}
{"fetch": DIGEST, "from": {node: address}}   {"seconds": ..., "peers": bytes by node}; `from` with --plain only
{"remove": DIGEST}                    {}
{"weigh": true}                       {"cpu_s": ..., "peak_mb": ..., "resident_mb": ...}; the peak begins anew
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import structlog
import uvloop
from aiohttp import web

from dht.peer_http import PEER, PeerHttp
from dht.swarm.content_routes import content_routes
from dht.swarm.content_server import serving_content
from dht.swarm.exchange import ContentConfig, Exchange, running_content
from node.config import NodeConfig
from node.runtime import running_node
from node.web import bind, serving
from protocol.peers import PeerIdentity
from tests.content_sites import SiteDirectory, Whereabouts, node_name

LARGEST = 1 << 40


@asynccontextmanager
async def as_shipped(data_dir: Path) -> AsyncIterator[tuple[Exchange, str, Whereabouts]]:
    async with running_node(NodeConfig.load(data_dir), data_dir) as node:
        yield node.content, node.running.peer, Whereabouts()


@asynccontextmanager
async def plain(folder: Path) -> AsyncIterator[tuple[Exchange, str, Whereabouts]]:
    whereabouts = Whereabouts()

    peer = PeerIdentity(node_name(1), "bench", "bench", ("store",))

    @web.middleware
    async def anybody(request: web.Request, handler: Any) -> web.StreamResponse:
        request[PEER] = peer
        return await handler(request)  # type: ignore[no-any-return]

    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(aiohttp.ClientSession())
        directory: Any = SiteDirectory(whereabouts, os.getpid(), "127.0.0.1:1")
        content = running_content(ContentConfig(path=folder), directory=directory, http=PeerHttp(session, None))
        exchange = await stack.enter_async_context(content)
        sock = bind("127.0.0.1", 0, 0)
        server = await stack.enter_async_context(serving_content(exchange, lambda _: peer, tls=None))
        routes = content_routes(exchange)
        await stack.enter_async_context(serving(sock, routes, middlewares=[anybody], take_content=server.take))
        yield exchange, f"127.0.0.1:{sock.getsockname()[1]}", whereabouts


def memory_mb(name: str) -> float:
    """`VmHWM` or `VmRSS` of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


def weigh() -> dict[str, float]:
    spent = os.times()
    weight = {"cpu_s": spent.user + spent.system, "peak_mb": memory_mb("VmHWM"), "resident_mb": memory_mb("VmRSS")}
    Path("/proc/self/clear_refs").write_text("5")
    return weight


async def perform(exchange: Exchange, whereabouts: Whereabouts, order: dict[str, Any]) -> dict[str, Any]:
    if "add" in order:
        began = time.perf_counter()
        digest = await exchange.add(Path(order["add"]), pin="bench" if order.get("pin") else None)
        return {"digest": digest, "seconds": time.perf_counter() - began}
    if "fetch" in order:
        digest = order["fetch"]
        whereabouts.providers[digest] = dict(order.get("from", {}))
        before = exchange.stats().received
        began = time.perf_counter()
        await exchange.fetch(digest, max_bytes=LARGEST, deadline_s=600)
        seconds = time.perf_counter() - began
        peers = {n: size - before.get((n, c), 0) for (n, c), size in exchange.stats().received.items() if c == "chunk"}
        return {"seconds": seconds, "peers": peers}
    if "remove" in order:
        await exchange.remove(order["remove"])
        return {}
    return weigh()


async def main(arguments: list[str]) -> None:
    make = plain(Path(arguments[1])) if arguments[0] == "--plain" else as_shipped(Path(arguments[0]))
    orders = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    async with make as (exchange, address, whereabouts):
        print(json.dumps({"address": address}), flush=True)
        while line := await orders.readline():
            print(json.dumps(await perform(exchange, whereabouts, json.loads(line))), flush=True)


if __name__ == "__main__":
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    uvloop.run(main(sys.argv[1:]))
