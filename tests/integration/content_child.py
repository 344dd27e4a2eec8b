"""Runs one content site in a process of its own, so that tests can kill it, limit it and weigh it.

    python -m tests.integration.content_child add   BLOBS FILE [PIN]
    python -m tests.integration.content_child fetch BLOBS DIGEST PROVIDER

Prints `done BYTES` as bytes arrive (flushed, so that the test knows when to strike), then `result OUTCOME GROWTH`,
with the growth of the peak of resident memory in KiB.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import aiohttp

from dht.peer_http import PeerHttp
from dht.swarm.exchange import ContentConfig, running_content
from protocol.instances import Progress
from protocol.problems import Problem
from tests.content_sites import SiteDirectory, Whereabouts, node_name, source


def peak_kib() -> int:
    """Peak of resident memory of this program. (`ru_maxrss` would start at the peak of the process that forked it.)"""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))


def show(progress: Progress) -> None:
    print("done", progress.done, flush=True)


async def main(command: str, blobs: str, what: str, more: str = "") -> None:
    shared = Whereabouts()
    if command == "fetch":
        shared.offer(what, node_name(1), more)
    directory = SiteDirectory(shared, 2, "127.0.0.1:1")
    async with (
        aiohttp.ClientSession(headers={"Test-Node": node_name(2)}) as session,
        running_content(
            ContentConfig(path=Path(blobs)),
            directory=directory,  # type: ignore[arg-type]
            http=PeerHttp(session, None, source=source(2)),
        ) as exchange,
    ):
        before = peak_kib()
        outcome = "ok"
        try:
            if command == "add":
                await exchange.add(Path(what), pin=more or None)
            else:
                await exchange.fetch(what, max_bytes=1 << 30, deadline_s=60, on_progress=show)
        except Problem as problem:
            outcome = problem.slug
        growth = peak_kib() - before
        print("result", outcome, growth, len(exchange.held()), flush=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
