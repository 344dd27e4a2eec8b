"""Archives to and from a controller: streamed, so that memory stays bounded, and verified before they are kept."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import aiohttp

from protocol import base64url
from protocol.identifiers import DIGEST_PREFIX, check_digest
from protocol.instances import OnProgress, Progress
from protocol.problems import BadRequest, CorruptContent, DiskFull, TooLarge
from protocol.records import RECORD_HEADER

BLOCK = 1 << 20
DEFAULT_MAX_BYTES = 16 << 30


def record_headers(envelope: bytes | None) -> dict[str, str]:
    """The header for an envelope; none without one (the controller then signs with its own key)."""
    return {} if envelope is None else {RECORD_HEADER: base64url.encode(envelope)}


def size_of(path: Path) -> int:
    """Bytes of a regular file. Raises BadRequest with the cause if it cannot be sent."""
    try:
        if not path.is_file():
            raise BadRequest(f"{path} is not a file")
        return path.stat().st_size
    except OSError as error:
        raise BadRequest(f"{path} cannot be read: {error.strerror}") from None


async def blocks_of(path: Path, on_progress: OnProgress | None) -> AsyncIterator[bytes]:
    """The file in blocks, telling after each how much was handed on."""
    total = size_of(path)
    done = 0
    file = await asyncio.to_thread(path.open, "rb")
    try:
        while block := await asyncio.to_thread(file.read, BLOCK):
            yield block
            done += len(block)
            if on_progress:
                on_progress(Progress("upload", path.name, done, total))
    finally:
        file.close()


async def save_verified(
    response: aiohttp.ClientResponse, digest: str, out: Path, *, max_bytes: int, on_progress: OnProgress | None
) -> int:
    """Write a body to `out` and return its size. `out` appears whole and true to `digest`, or not at all.

    Raises CorruptContent, TooLarge, DiskFull.
    """
    check_digest(digest)
    hasher = hashlib.sha256()
    size, total = 0, response.content_length or 0
    with _translated(out):
        descriptor, name = tempfile.mkstemp(dir=out.parent, prefix=f".{out.name}-")
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            async for block in response.content.iter_chunked(BLOCK):
                size += len(block)
                if size > max_bytes:
                    raise TooLarge(f"the content has more than {max_bytes} bytes")
                hasher.update(block)
                with _translated(out):
                    await asyncio.to_thread(file.write, block)
                if on_progress:
                    on_progress(Progress("download", out.name, size, total))
            with _translated(out):
                await asyncio.to_thread(_flush, file)
        if DIGEST_PREFIX + hasher.hexdigest() != digest:
            raise CorruptContent(
                f"the controller sent {size} bytes that are not {digest}",
                fix="Nothing was kept. Ask again, or ask another region's controller.",
            )
        with _translated(out):
            await asyncio.to_thread(temporary.replace, out)
    finally:
        await asyncio.to_thread(temporary.unlink, missing_ok=True)
    return size


def _flush(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    """Turns the operating system's refusal to write `path` into a Problem."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(f"{path} cannot be written: {error.strerror}", fix="Free some room.") from None
        raise BadRequest(f"{path} cannot be written: {error.strerror}", fix="Name another file.") from None
