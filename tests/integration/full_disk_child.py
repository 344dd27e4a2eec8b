"""A store on a disk that fills up under it and is freed again. Prints `ok` when all promises held.

    python -m tests.integration.full_disk_child BLOBS PINNED LATER BALLAST

`PINNED` is kept from the start, `LATER` is added while `BALLAST` (a path on the same disk) takes what is left, and
again after it was removed.
"""

from __future__ import annotations

import asyncio
import hashlib
import sys
from collections.abc import Awaitable
from pathlib import Path

import aiohttp

from dht.peer_http import PeerHttp
from dht.swarm.exchange import ContentConfig, Exchange, running_content
from protocol.problems import DiskFull
from tests.content_sites import SiteDirectory, Whereabouts


async def main(blobs: str, pinned: str, later: str, ballast: str) -> None:
    async with (
        aiohttp.ClientSession() as session,
        running_content(
            ContentConfig(path=Path(blobs)),
            directory=SiteDirectory(Whereabouts(), 1, "127.0.0.1:1"),  # type: ignore[arg-type]
            http=PeerHttp(session, None),
        ) as content,
    ):
        kept = await content.add(Path(pinned), pin="published here")
        fill(Path(ballast))
        await refused(content.add(Path(later), pin="published here"))
        await refused(content.add(Path(later)))
        assert list(content.held()) == [kept]
        Path(ballast).unlink()
        added = await content.add(Path(later), pin="published here")
        for digest in (kept, added):
            assert await digest_at(content, digest) == digest
        fill(Path(ballast))
    print("ok", flush=True)


def fill(ballast: Path) -> None:
    """Take all that is left, to the last byte."""
    with ballast.open("wb", buffering=0) as file:
        piece = bytes(1 << 20)
        while piece:
            try:
                file.write(piece)
            except OSError:
                piece = piece[: len(piece) // 2]


async def refused(work: Awaitable[str]) -> None:
    try:
        await work
    except DiskFull:
        return
    raise AssertionError("a full disk took something")


async def digest_at(content: Exchange, digest: str) -> str:
    async with content.materialized(digest) as path:
        return "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
