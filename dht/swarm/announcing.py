"""Telling the directory what this node serves: one task, the newest wish per digest wins."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog

from dht.contracts import Directory
from protocol.problems import Problem

log = structlog.get_logger(__name__)

_AT_ONCE = 8


class Announcer:
    """Use `running_announcer`. Wishes are kept in memory only: all whole blobs are announced again on start."""

    def __init__(self, directory: Directory) -> None:
        self._directory = directory
        self._wishes: dict[str, bool] = {}
        self._waiters: dict[str, list[asyncio.Future[None]]] = {}
        self._wake = asyncio.Event()

    def announce(self, digest: str) -> None:
        self._wish(digest, True)

    def retract(self, digest: str) -> None:
        self._wish(digest, False)

    async def announced(self, digest: str) -> None:
        """Announce, and wait until the directory was told."""
        told: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.setdefault(digest, []).append(told)
        self._wish(digest, True)
        await told

    def _wish(self, digest: str, served: bool) -> None:
        self._wishes[digest] = served
        self._wake.set()

    async def run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._wishes:
                batch = [(d, self._wishes.pop(d)) for d in list(self._wishes)[:_AT_ONCE]]
                await asyncio.gather(*(self._tell(digest, served) for digest, served in batch))

    async def _tell(self, digest: str, served: bool) -> None:
        waiters = self._waiters.pop(digest, [])
        try:
            if served:
                await self._directory.announce_content(digest)
            else:
                await self._directory.retract_content(digest)
        except Problem as problem:
            log.warning("content-not-announced", digest=digest, served=served, why=problem.detail)
        except Exception:  # one failed wish must not end the task that serves all others
            log.exception("content-not-announced", digest=digest, served=served)
        finally:
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(None)


@asynccontextmanager
async def running_announcer(directory: Directory) -> AsyncIterator[Announcer]:
    announcer = Announcer(directory)
    task = asyncio.create_task(announcer.run(), name="announce content")
    try:
        yield announcer
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
