"""The content endpoints as a peer sees them, and what `PeerHttp` makes of errors."""

from __future__ import annotations

import asyncio
import errno
from pathlib import Path

import aiohttp
import pytest

from dht.content_wire import CHUNK_HEADER, encode_asked
from dht.peer_http import PeerHttp
from protocol.bounded import read_bounded
from protocol.identifiers import digest_of
from protocol.manifest import Manifest
from protocol.problems import (
    BadRequest,
    ContentNotFound,
    NotFound,
    Problem,
    TooLarge,
    TooManyRequests,
    Unavailable,
)
from tests.content_sites import Site, Whereabouts, a_file, node_name, noise, site
from tests.waiting import until

DATA = noise(1_000_000)


async def ask(method: str, site: Site, path: str, **kwargs: object) -> bytes:
    async with (
        aiohttp.ClientSession(headers={"Test-Node": node_name(9)}) as session,
        PeerHttp(session, None).request(method, site.address, path, timeout_s=5, **kwargs) as response,
    ):
        return await read_bounded(response.content.iter_any(), 1 << 30, "the answer")


async def test_manifest_chunks_and_counts(tmp_path: Path) -> None:
    async with site(Whereabouts(), tmp_path, 1) as here:
        digest = await here.exchange.add(a_file(tmp_path / "blob", DATA))
        manifest = Manifest.decode(await ask("GET", here, f"/peer/content/{digest}/manifest"), digest=digest)
        singly = [await ask("GET", here, f"/peer/chunks/{c.digest}") for c in manifest.chunks]
        assert b"".join(singly) == DATA
        together = await ask("POST", here, "/peer/chunks", data=encode_asked(c.digest for c in manifest.chunks))
        assert together == b"".join(CHUNK_HEADER.pack(len(part)) + part for part in singly)
        sent = here.exchange.stats().sent
        assert sent[node_name(9), "chunk"] == len(DATA) + len(together)
        assert sent[node_name(9), "manifest"] == len(manifest.encode())


async def test_a_chunk_that_is_not_here_has_length_zero(tmp_path: Path) -> None:
    async with site(Whereabouts(), tmp_path, 1) as here:
        answer = await ask("POST", here, "/peer/chunks", data=encode_asked([digest_of(b"absent")]))
        assert answer == CHUNK_HEADER.pack(0)


@pytest.mark.parametrize(
    ("method", "path", "data", "problem"),
    [
        ("GET", f"/peer/content/{digest_of(b'absent')}/manifest", None, ContentNotFound),
        ("GET", f"/peer/content/{digest_of(b'absent')}/have", None, ContentNotFound),
        ("GET", f"/peer/chunks/{digest_of(b'absent')}", None, NotFound),
        ("GET", "/peer/chunks/sha256:..%2f..%2fetc", None, BadRequest),
        ("GET", "/peer/content/md5:00/manifest", None, BadRequest),
        ("POST", "/peer/chunks", b"\xff", BadRequest),
        ("POST", "/peer/chunks", encode_asked(["../../content.sqlite"]), BadRequest),
        ("POST", "/peer/chunks", bytes(1 << 20), TooLarge),
    ],
)
async def test_bad_requests_are_refused(
    tmp_path: Path, method: str, path: str, data: bytes | None, problem: type[Problem]
) -> None:
    async with site(Whereabouts(), tmp_path, 1) as here:
        with pytest.raises(problem):
            await ask(method, here, path, data=data)


async def test_beyond_its_slots_a_node_says_when_to_come_back(tmp_path: Path) -> None:
    async with site(Whereabouts(), tmp_path, 1, max_uploads=1, upload_mbit_s=4) as here:
        digest = await here.exchange.add(a_file(tmp_path / "blob", DATA))
        manifest = await here.exchange.manifest(digest)
        assert manifest is not None
        body = encode_asked(c.digest for c in manifest.chunks)
        long = asyncio.create_task(ask("POST", here, "/peer/chunks", data=body))
        await until(lambda: here.exchange.stats().uploads == 1)
        with pytest.raises(TooManyRequests) as caught:
            await ask("POST", here, "/peer/chunks", data=body)
        assert caught.value.retry_after == 0.25
        long.cancel()
        await asyncio.gather(long, return_exceptions=True)
        await until(lambda: here.exchange.stats().uploads == 0)


async def test_uploads_keep_to_the_rate(tmp_path: Path) -> None:
    async with site(Whereabouts(), tmp_path, 1, upload_mbit_s=16) as here:
        digest = await here.exchange.add(a_file(tmp_path / "blob", DATA))
        manifest = await here.exchange.manifest(digest)
        assert manifest is not None
        started = asyncio.get_running_loop().time()
        await ask("POST", here, "/peer/chunks", data=encode_asked(c.digest for c in manifest.chunks))
        elapsed = asyncio.get_running_loop().time() - started
        assert elapsed > 0.2, "1 MB at 2 MB/s, less the burst of a quarter second"


async def test_a_full_disk_in_the_block_is_not_an_unreachable_peer(tmp_path: Path) -> None:
    async with site(Whereabouts(), tmp_path, 1) as here, aiohttp.ClientSession() as session:
        digest = await here.exchange.add(a_file(tmp_path / "blob", DATA))
        http = PeerHttp(session, None)
        with pytest.raises(OSError, match="No space") as caught:
            async with http.request("GET", here.address, f"/peer/content/{digest}/manifest", timeout_s=5):
                raise OSError(errno.ENOSPC, "No space left on device")
        assert caught.value.errno == errno.ENOSPC
        with pytest.raises(Unavailable, match="cannot be reached"):
            async with http.request("GET", "127.0.0.1:1", "/", timeout_s=5):
                pass
