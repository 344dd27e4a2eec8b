"""What is evicted while a peer reads it, what is half here while room is wanted, and publishing that is killed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from pathlib import Path

import pytest

from dht.swarm import chunk_transfer
from dht.swarm.exchange import Exchange
from protocol.identifiers import digest_of
from protocol.problems import DiskFull, Unavailable
from tests.content_sites import Site, Whereabouts, a_file, noise, site
from tests.integration.test_content_faults import bytes_of, fetch, received, start_child
from tests.waiting import until

DATA = noise(6_000_000)
OTHER = noise(5_000_000, 2)
QUOTA = 8_000_000
"""Room for one of them."""


async def some_of_it_came(exchange: Exchange, fetching: asyncio.Task[None]) -> None:
    await until(lambda: sum(received(exchange).values()) > len(DATA) // 4, every_s=0.005)
    assert not fetching.done()


async def evicted_from(holder: Site, path: Path, digest: str) -> None:
    await holder.exchange.add(a_file(path / "other", OTHER))
    assert not holder.exchange.has(digest)


async def in_the_midst_of_a_fetch(getter: Site, digest: str, event: Awaitable[None]) -> asyncio.Task[None]:
    fetching = asyncio.create_task(fetch(getter.exchange, digest))
    await some_of_it_came(getter.exchange, fetching)
    await event
    return fetching


async def test_who_reads_what_is_evicted_meanwhile_gets_the_rest_from_others(tmp_path: Path) -> None:
    shared = Whereabouts()
    async with (
        site(shared, tmp_path, 1, quota_bytes=QUOTA, upload_mbit_s=60) as first,
        site(shared, tmp_path, 2, upload_mbit_s=60) as second,
        site(shared, tmp_path, 3) as getter,
    ):
        digest = await first.exchange.add(a_file(tmp_path / "blob", DATA))
        await second.exchange.add(tmp_path / "blob")
        await (await in_the_midst_of_a_fetch(getter, digest, evicted_from(first, tmp_path, digest)))
        assert await bytes_of(getter.exchange, digest) == DATA
        assert received(getter.exchange, "corrupt") == {}
        assert sum(received(getter.exchange).values()) == len(DATA), "nothing came twice"


async def test_who_reads_what_is_evicted_everywhere_is_told_so_and_keeps_what_came(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunk_transfer, "PATIENCE_S", 0.5)
    shared = Whereabouts()
    async with (
        site(shared, tmp_path, 1, quota_bytes=QUOTA, upload_mbit_s=60) as first,
        site(shared, tmp_path, 2) as getter,
    ):
        digest = await first.exchange.add(a_file(tmp_path / "blob", DATA))
        fetching = await in_the_midst_of_a_fetch(getter, digest, evicted_from(first, tmp_path, digest))
        with pytest.raises(Unavailable, match=r"missing .*lacks what it offered"):
            await fetching
        assert received(getter.exchange, "corrupt") == {}
        kept = getter.exchange.stats().stored_bytes
        assert len(DATA) // 4 < kept < len(DATA)
        async with site(shared, tmp_path, 3) as again:
            await again.exchange.add(tmp_path / "blob")
            await fetch(getter.exchange, digest)
        assert await bytes_of(getter.exchange, digest) == DATA
        assert sum(received(getter.exchange).values()) == len(DATA), "what had come was not fetched again"


async def test_what_is_half_here_stays_while_it_is_fetched_and_makes_room_when_it_is_not(tmp_path: Path) -> None:
    shared = Whereabouts()
    async with (
        site(shared, tmp_path, 1, upload_mbit_s=60) as first,
        site(shared, tmp_path, 2, quota_bytes=QUOTA) as getter,
    ):
        pinned = await getter.exchange.add(a_file(tmp_path / "pinned", noise(1_000_000, 3)), pin="published")
        digest = await first.exchange.add(a_file(tmp_path / "blob", DATA))

        async def more_than_there_is_room_for() -> None:
            with pytest.raises(DiskFull):
                await getter.exchange.add(a_file(tmp_path / "other", OTHER))

        await (await in_the_midst_of_a_fetch(getter, digest, more_than_there_is_room_for()))
        assert await bytes_of(getter.exchange, digest) == DATA
        assert not getter.exchange.has(digest_of(OTHER))

        await getter.exchange.remove(digest)
        before = sum(received(getter.exchange).values())
        fetching = asyncio.create_task(fetch(getter.exchange, digest))
        await until(lambda: sum(received(getter.exchange).values()) > before + len(DATA) // 4, every_s=0.005)
        fetching.cancel()
        await asyncio.gather(fetching, return_exceptions=True)
        await getter.exchange.add(tmp_path / "other")
        assert getter.exchange.held() == sorted([pinned, digest_of(OTHER)])
        assert getter.exchange.stats().stored_bytes == len(OTHER) + 1_000_000
        await getter.exchange.remove(digest_of(OTHER))
        await fetch(getter.exchange, digest)
        assert await bytes_of(getter.exchange, digest) == DATA
        assert await bytes_of(getter.exchange, pinned) == noise(1_000_000, 3)


async def test_publishing_that_is_killed_leaves_nothing_pinned_but_what_is_whole(tmp_path: Path) -> None:
    """What it leaves makes room like anything else, and publishing it again brings it to its end."""
    blob = a_file(tmp_path / "blob", noise(48_000_000))
    process = await start_child("add", str(tmp_path / "blobs1"), str(blob), "published")
    packs = tmp_path / "blobs1" / "packs"
    await until(lambda: packs.is_dir() and sum(f.stat().st_blocks for f in packs.iterdir()) > 8_000, every_s=0.002)
    process.kill()
    await process.wait()
    async with site(Whereabouts(), tmp_path, 1, quota_bytes=50_000_000) as here:
        assert here.exchange.held() == []
        await here.exchange.add(a_file(tmp_path / "other", OTHER))
        digest = await here.exchange.add(blob, pin="published")
        assert here.exchange.has(digest)
        assert await bytes_of(here.exchange, digest) == blob.read_bytes()
