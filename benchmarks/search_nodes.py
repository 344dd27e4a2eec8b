"""Nodes in a process of their own for `benchmarks.search`: one JSON object a line in, one a line out.

python -m benchmarks.search_nodes DATA_DIR...     the nodes of those folders, as `cornerstore up` runs them

Nodes that know nobody join through the first. It begins by saying {"dht": [host:port, ...]}. Then:
{"publish": ENVELOPE in hex, "at": number of the node} answers {}.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from contextlib import AsyncExitStack
from pathlib import Path

import structlog
import uvloop
from msgspec.structs import replace

from node.cli.serving import set_imports_aside
from node.config import Mesh, NodeConfig
from node.runtime import Node, running_node
from protocol.records import verify


async def main(folders: list[Path]) -> None:
    orders = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    async with AsyncExitStack() as stack:
        nodes: list[Node] = []
        for path in folders:
            config = NodeConfig.load(path)
            if nodes and not config.dht.bootstrap:
                config = replace(config, dht=Mesh(bootstrap=(nodes[0].running.dht,)))
            nodes.append(await stack.enter_async_context(running_node(config, path)))
        print(json.dumps({"dht": [node.running.dht for node in nodes]}), flush=True)
        while line := await orders.readline():
            order = json.loads(line)
            await nodes[order["at"]].directory.publish(verify(bytes.fromhex(order["publish"])))
            print("{}", flush=True)


if __name__ == "__main__":
    structlog.configure(
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR),
    )
    set_imports_aside()
    uvloop.run(main([Path(text) for text in sys.argv[1:]]))
