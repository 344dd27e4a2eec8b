"""Archives on their way through the controller: uploads become files of the spool, and only so many at once."""

from __future__ import annotations

import asyncio
import hashlib
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import structlog
from msgspec import Struct

from dht.disk_errors import disk_errors
from protocol.identifiers import DIGEST_PREFIX
from protocol.problems import BadRequest, DiskFull, TooLarge, TooManyRequests

log = structlog.get_logger(__name__)

RETRY_AFTER_S = 5
STALLED_S = 30.0
LEAST_BYTES = 256 << 10
"""An upload that brings less than LEAST_BYTES in STALLED_S is given up: it holds one of few slots."""
_SUFFIX = ".csar"


class Slots:
    """At most `limit` of `what` at once. Who comes then is told to come again, not queued."""

    def __init__(self, limit: int, what: str) -> None:
        self._limit = limit
        self._what = what
        self._taken = 0

    @contextmanager
    def one(self) -> Iterator[None]:
        """Raises TooManyRequests."""
        if self._taken >= self._limit:
            raise TooManyRequests(
                f"{self._taken} {self._what} are under way", fix="Ask again in a moment.", retry_after=RETRY_AFTER_S
            )
        self._taken += 1
        try:
            yield
        finally:
            self._taken -= 1


class Spooled(Struct, frozen=True):
    """An upload that arrived whole."""

    path: Path
    digest: str
    size: int


class Spool:
    """A folder for uploads under way: each has at most `archive_bytes`, all together `quota_bytes`, at most `uploads`
    at once. What a crash left there is removed when it is opened."""

    def __init__(
        self, folder: Path, *, archive_bytes: int, quota_bytes: int, uploads: int, stalled_s: float = STALLED_S
    ) -> None:
        self._folder = folder
        self._archive_bytes = archive_bytes
        self._quota_bytes = max(quota_bytes, archive_bytes)
        self._slots = Slots(uploads, "uploads")
        self._stalled_s = stalled_s
        self._bytes = 0
        for left in folder.glob(f"*{_SUFFIX}"):
            log.info("spool-leftover-removed", file=left.name)
            left.unlink(missing_ok=True)

    @asynccontextmanager
    async def keeping(self, body: AsyncIterator[bytes]) -> AsyncIterator[Spooled]:
        """The upload as a file, gone after the block. Raises TooManyRequests, TooLarge, DiskUnusable, BadRequest."""
        with self._slots.one(), disk_errors("the upload"):
            self._folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self._folder, suffix=_SUFFIX) as file:
                sha256, size = hashlib.sha256(), 0
                try:
                    async for part in self._moving(body):
                        size += len(part)
                        self._bytes += len(part)
                        self._check(size)
                        sha256.update(part)
                        await asyncio.to_thread(file.write, part)
                    if size == 0:
                        raise BadRequest("the body is empty", fix="Send the bytes of the CSAR as the body.")
                    file.flush()
                    yield Spooled(Path(file.name), DIGEST_PREFIX + sha256.hexdigest(), size)
                finally:
                    self._bytes -= size

    def _check(self, size: int) -> None:
        if size > self._archive_bytes:
            raise TooLarge(
                f"an archive has at most {self._archive_bytes} bytes", fix="Publish it with `cornerstore seed`."
            )
        if self._bytes > self._quota_bytes:
            raise DiskFull(
                f"uploads under way fill the {self._quota_bytes} bytes that are meant for them",
                fix="Ask again in a moment.",
                retry_after=RETRY_AFTER_S,
            )

    async def _moving(self, body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """The parts of `body`, as long as they come fast enough."""
        now = asyncio.get_running_loop().time
        ends, came = now() + self._stalled_s, 0
        while True:
            try:
                async with asyncio.timeout_at(ends):
                    part = await anext(body, None)
            except TimeoutError:
                raise BadRequest(
                    f"the upload sent {came} bytes in {self._stalled_s:g} s; it is given up below {LEAST_BYTES}",
                    fix="Send it again, over a faster line.",
                ) from None
            if part is None:
                return
            came += len(part)
            if came >= LEAST_BYTES:
                ends, came = now() + self._stalled_s, 0
            yield part
