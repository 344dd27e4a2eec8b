"""The content endpoints and the listener for chunks as a peer sees them, hostile ones too."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest

from dht.peer_http import PeerHttp, decode_problem
from dht.swarm.content_server import serving_content
from dht.swarm.content_wire import CHUNK_HEADER, LENGTH, NO_PROBLEM, OPENING, encode_asked
from protocol.bounded import read_bounded
from protocol.identifiers import digest_of
from protocol.manifest import Manifest
from protocol.peers import PeerIdentity
from protocol.problems import (
    BadRequest,
    ContentNotFound,
    KeyNeeded,
    Problem,
    TooLarge,
    TooManyRequests,
    Unavailable,
)
from tests.content_sites import Site, Whereabouts, a_file, node_name, noise, served, site, source
from tests.waiting import until

DATA = noise(1_000_000)


async def ask(method: str, site: Site, path: str, **kwargs: object) -> bytes:
    async with (
        aiohttp.ClientSession(headers={"Test-Node": node_name(9)}) as session,
        PeerHttp(session, None).request(method, site.address, path, timeout_s=5, **kwargs) as response,
    ):
        return await read_bounded(response.content.iter_any(), 1 << 30, "the answer")


async def chunks(site: Site, requests: bytes, *, source: str = source(9)) -> bytes:
    """All that comes back on one connection."""

    def exchanged() -> bytes:
        with socket.create_connection(tuple(site.address.split(":")), source_address=(source, 0), timeout=10) as sock:
            sock.sendall(OPENING + requests)
            sock.shutdown(socket.SHUT_WR)
            with sock.makefile("rb") as answer:
                return answer.read()

    return await asyncio.to_thread(exchanged)


PEER = PeerIdentity("0" * 40, "home", "eu", ("store",))


def problem_in_answer(answer: bytes) -> Problem | None:
    assert LENGTH.unpack(answer[: LENGTH.size]) == (len(answer) - LENGTH.size,)
    return decode_problem(answer[LENGTH.size :])


def offsets(manifest: Manifest) -> list[int]:
    return list(itertools.accumulate((c.length for c in manifest.chunks[:-1]), initial=0))


async def test_manifest_chunks_and_counts(tmp_path: Path) -> None:
    async with site(Whereabouts(), tmp_path, 1) as here:
        digest = await here.exchange.add(a_file(tmp_path / "blob", DATA))
        manifest = Manifest.decode(await ask("GET", here, f"/peer/content/{digest}/manifest"), digest=digest)
        answer = await chunks(here, encode_asked(c.digest for c in manifest.chunks))
        parts = [DATA[start : start + c.length] for start, c in zip(offsets(manifest), manifest.chunks, strict=True)]
        assert answer == NO_PROBLEM + b"".join(CHUNK_HEADER.pack(len(part)) + part for part in parts)
        sent = here.exchange.stats().sent
        assert sent[node_name(9), "chunk"] == len(answer)
        assert sent[node_name(9), "manifest"] == len(manifest.encode())


async def test_a_chunk_that_is_not_here_has_length_zero(tmp_path: Path) -> None:
    async with site(Whereabouts(), tmp_path, 1) as here:
        answer = await chunks(here, encode_asked([digest_of(b"absent")]) * 2)
        assert answer == (NO_PROBLEM + CHUNK_HEADER.pack(0)) * 2, "one after another on one connection"


@pytest.mark.parametrize(
    ("request_", "problem"),
    [
        (LENGTH.pack(1) + b"\xff", BadRequest),
        (encode_asked(["../../content.sqlite"]), BadRequest),
        (encode_asked([]), BadRequest),
        (LENGTH.pack(0), TooLarge),
        (LENGTH.pack(1 << 20), TooLarge),
    ],
    ids=["garbage", "a path", "nothing", "no bytes", "a megabyte"],
)
async def test_bad_requests_for_chunks_are_refused(tmp_path: Path, request_: bytes, problem: type[Problem]) -> None:
    async with site(Whereabouts(), tmp_path, 1) as here:
        assert isinstance(problem_in_answer(await chunks(here, request_)), problem)
        assert await chunks(here, encode_asked([digest_of(b"absent")])), "and others are served"


async def test_who_says_half_of_something_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slowloris: at the opening, at the length of a request, in the request."""
    monkeypatch.setattr("node.door.HELLO_S", 0.2)
    monkeypatch.setattr("dht.swarm.content_server.IDLE_S", 0.2)
    monkeypatch.setattr("dht.swarm.content_server.REQUEST_S", 0.2)
    request = encode_asked([digest_of(b"absent")])
    async with site(Whereabouts(), tmp_path, 1) as here:
        for said in (b"", OPENING[:9], OPENING, OPENING + request[:2], OPENING + request[:-1], b"\0other/1\n" * 9):
            reader, writer = await asyncio.open_connection(*here.address.split(":"))
            writer.write(said)
            with contextlib.suppress(ConnectionError):
                assert await asyncio.wait_for(reader.read(), 5) == b""
            writer.close()


async def test_who_takes_nothing_loses_the_slot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dht.swarm.content_server.IDLE_S", 0.3)
    data = noise(16_000_000)
    async with site(Whereabouts(), tmp_path, 1, max_uploads=1) as here:
        digest = await here.exchange.add(a_file(tmp_path / "blob", data))
        manifest = await here.exchange.manifest(digest)
        assert manifest is not None
        with socket.create_connection(tuple(here.address.split(":"))) as sock:
            sock.sendall(OPENING + encode_asked(c.digest for c in manifest.chunks[:60]))
            await until(lambda: here.exchange.stats().uploads == 1)
            await until(lambda: here.exchange.stats().uploads == 0)


async def test_strangers_get_no_chunks(tmp_path: Path) -> None:
    async with site(Whereabouts(), tmp_path, 1) as here:
        digest = await here.exchange.add(a_file(tmp_path / "blob", b"x" * 1000))
        async with (
            serving_content(here.exchange, lambda _: None, tls=None, drain_s=0.1) as server,
            served([], take_content=server.take) as address,
        ):
            at = replace(here, address=address)
            assert isinstance(problem_in_answer(await chunks(at, encode_asked([digest]))), KeyNeeded)


async def test_who_is_no_member_any_more_gets_no_more_chunks_over_an_open_connection(tmp_path: Path) -> None:
    """Its certificate ended meanwhile. It is known at the handshake and at the first request, and at the second not."""
    known = iter([PEER, PEER])
    async with (
        site(Whereabouts(), tmp_path, 1) as here,
        serving_content(here.exchange, lambda _: next(known, None), tls=None, drain_s=0.1) as server,
        served([], take_content=server.take) as address,
    ):
        answer = await chunks(replace(here, address=address), encode_asked([digest_of(b"absent")]) * 2)
    served_first = NO_PROBLEM + CHUNK_HEADER.pack(0)
    assert answer.startswith(served_first)
    assert isinstance(problem_in_answer(answer.removeprefix(served_first)), KeyNeeded)


async def test_one_peer_has_only_so_many_connections(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dht.swarm.connection_limits.MAX_OF_ONE_PEER", 2)
    request = encode_asked([digest_of(b"absent")])
    async with site(Whereabouts(), tmp_path, 1) as here, AsyncExitStack() as stack:
        for _ in range(2):
            kept = stack.enter_context(socket.create_connection(tuple(here.address.split(":"))))
            kept.sendall(OPENING + request)
            await asyncio.to_thread(kept.recv, 8)
        refusal = problem_in_answer(await chunks(here, request, source="127.0.0.1"))
        assert isinstance(refusal, TooManyRequests)
        assert await chunks(here, request, source=source(9)) == NO_PROBLEM + CHUNK_HEADER.pack(0)


@pytest.mark.parametrize(
    ("method", "path", "data", "problem"),
    [
        ("GET", f"/peer/content/{digest_of(b'absent')}/manifest", None, ContentNotFound),
        ("GET", f"/peer/content/{digest_of(b'absent')}/have", None, ContentNotFound),
        ("GET", "/peer/content/md5:00/manifest", None, BadRequest),
        ("GET", "/peer/content/sha256:..%2f..%2fetc/manifest", None, BadRequest),
    ],
)
async def test_bad_requests_are_refused(
    tmp_path: Path, method: str, path: str, data: bytes | None, problem: type[Problem]
) -> None:
    async with site(Whereabouts(), tmp_path, 1) as here:
        with pytest.raises(problem):
            await ask(method, here, path, data=data)


async def test_what_a_node_tells_of_its_chunks_arrives_in_time_or_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dht.swarm.crowd_routes.BODY_S", 0.05)

    async def held_back() -> AsyncIterator[bytes]:
        yield b"\x92"
        await asyncio.Event().wait()  # and no more

    async with site(Whereabouts(), tmp_path, 1) as here:
        digest = await here.exchange.add(a_file(tmp_path / "blob", DATA))
        with pytest.raises(BadRequest, match="did not arrive within"):
            await ask(
                "POST", here, f"/peer/content/{digest}/have", data=held_back(), headers={"Content-Length": "1000"}
            )


async def test_beyond_its_slots_a_node_says_when_to_come_back(tmp_path: Path) -> None:
    async with site(Whereabouts(), tmp_path, 1, max_uploads=1, upload_mbit_s=4) as here:
        digest = await here.exchange.add(a_file(tmp_path / "blob", DATA))
        manifest = await here.exchange.manifest(digest)
        assert manifest is not None
        body = encode_asked(c.digest for c in manifest.chunks)
        with socket.create_connection(tuple(here.address.split(":"))) as long:
            long.sendall(OPENING + body)
            await until(lambda: here.exchange.stats().uploads == 1)
            refusal = problem_in_answer(await chunks(here, body))
            assert isinstance(refusal, TooManyRequests)
            assert refusal.retry_after == 0.25
        await until(lambda: here.exchange.stats().uploads == 0)


async def test_uploads_keep_to_the_rate(tmp_path: Path) -> None:
    async with site(Whereabouts(), tmp_path, 1, upload_mbit_s=16) as here:
        digest = await here.exchange.add(a_file(tmp_path / "blob", DATA))
        manifest = await here.exchange.manifest(digest)
        assert manifest is not None
        started = asyncio.get_running_loop().time()
        await chunks(here, encode_asked(c.digest for c in manifest.chunks))
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
