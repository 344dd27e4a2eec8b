"""What happens in the region, told live to who listens: `GET /v1/events`.

A listener first gets everything as it stands, in one event or more, then each change. One that does not keep up is
ended: it comes again and gets everything as it stands then. Nothing is kept for those who do not listen.

There are so many places, and so many for one client. Where all are taken, the client with the most of them gives up the
one that it has had for longest, if the newcomer then has no more than it.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from protocol.events import News
from protocol.problems import TooManyRequests

MAX_LISTENERS = 64
MAX_OF_ONE_CLIENT = 8
MAX_QUEUED = 512


class Feed:
    """`snapshot` makes what a new listener is told first."""

    def __init__(self, snapshot: Callable[[], Iterable[News]]) -> None:
        self._snapshot = snapshot
        self._listeners: dict[asyncio.Queue[News | None], str] = {}
        """Each with its client, in the order in which they came."""

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
                self._end(queue)

    def end(self) -> None:
        """The controller stops."""
        for queue in tuple(self._listeners):
            self._end(queue)

    def _end(self, queue: asyncio.Queue[News | None]) -> None:
        del self._listeners[queue]
        queue.put_nowait(None)

    @contextmanager
    def listening(self, client: str) -> Iterator[AsyncIterator[News]]:
        """`client`: the address that listens. Raises TooManyRequests."""
        self._make_room(client)
        queue: asyncio.Queue[News | None] = asyncio.Queue()
        standing = list(self._snapshot())
        self._listeners[queue] = client
        try:
            yield _told(standing, queue)
        finally:
            self._listeners.pop(queue, None)

    def _make_room(self, client: str) -> None:
        places = Counter(self._listeners.values())
        if places[client] >= MAX_OF_ONE_CLIENT:
            raise TooManyRequests(
                f"{client} listens {MAX_OF_ONE_CLIENT} times already", fix="Share one stream.", retry_after=10
            )
        if len(self._listeners) < MAX_LISTENERS:
            return
        most = max(self._listeners.values(), key=lambda one: places[one])
        if places[most] <= places[client] + 1:
            raise TooManyRequests(f"{MAX_LISTENERS} listen already", fix="Try again later.", retry_after=10)
        self._end(next(queue for queue, one in self._listeners.items() if one == most))


async def _told(standing: Sequence[News], queue: asyncio.Queue[News | None]) -> AsyncIterator[News]:
    for one in standing:
        yield one
    while (news := await queue.get()) is not None:
        yield news
