"""What happens in the region, told live to who listens: `GET /v1/events`.

A listener first gets everything as it stands, in one event or more, then each change. One that does not keep up is
ended: it comes again and gets everything as it stands then. Nothing is kept for those who do not listen.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from protocol.events import News
from protocol.problems import TooManyRequests

MAX_LISTENERS = 64
MAX_QUEUED = 512


class Feed:
    """`snapshot` makes what a new listener is told first."""

    def __init__(self, snapshot: Callable[[], Iterable[News]]) -> None:
        self._snapshot = snapshot
        self._listeners: set[asyncio.Queue[News | None]] = set()

    @property
    def heard(self) -> bool:
        """Whether anybody listens."""
        return bool(self._listeners)

    def tell(self, news: Callable[[], News]) -> None:
        """`news` is only made if somebody listens."""
        if not self._listeners:
            return
        made = news()
        for queue in tuple(self._listeners):
            if queue.qsize() < MAX_QUEUED:
                queue.put_nowait(made)
            else:
                self._listeners.discard(queue)
                queue.put_nowait(None)

    def end(self) -> None:
        """The controller stops."""
        for queue in self._listeners:
            queue.put_nowait(None)
        self._listeners.clear()

    @contextmanager
    def listening(self) -> Iterator[AsyncIterator[News]]:
        """Raises TooManyRequests."""
        if len(self._listeners) >= MAX_LISTENERS:
            raise TooManyRequests(f"{MAX_LISTENERS} listen already", fix="Try again later.", retry_after=10)
        queue: asyncio.Queue[News | None] = asyncio.Queue()
        standing = list(self._snapshot())
        self._listeners.add(queue)
        try:
            yield _told(standing, queue)
        finally:
            self._listeners.discard(queue)


async def _told(standing: Sequence[News], queue: asyncio.Queue[News | None]) -> AsyncIterator[News]:
    for one in standing:
        yield one
    while (news := await queue.get()) is not None:
        yield news
