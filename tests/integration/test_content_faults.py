"""Content under faults: dying, lying, busy providers; damaged and full disks; kill -9; large files."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import socket
import sys
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from dht.blobs.packs import Packs, Place
from dht.swarm import patience
from dht.swarm.content_wire import CHUNK_HEADER, ELSEWHERE, NO_PROBLEM, Asked
from dht.swarm.crowd_wire import encode_told
from dht.swarm.exchange import Exchange
from dht.swarm.meeting import Meetings
from protocol.identifiers import digest_of
from protocol.instances import Progress
from protocol.manifest import Chunk, Manifest
from protocol.problems import ContentNotFound, CorruptContent, DiskUnusable, Unavailable
from tests.content_sites import (
    Answering,
    Site,
    SiteDirectory,
    Whereabouts,
    a_file,
    damage,
    files_of,
    node_name,
    noise,
    served,
    site,
)
from tests.waiting import until

MANY = 1 << 30


async def fetch(exchange: Exchange, digest: str, **kwargs: object) -> None:
    await exchange.fetch(digest, max_bytes=MANY, deadline_s=30, **kwargs)  # type: ignore[arg-type]


async def bytes_of(exchange: Exchange, digest: str) -> bytes:
    async with exchange.materialized(digest) as path:
        return path.read_bytes()


def received(exchange: Exchange, *causes: str) -> dict[str, int]:
    """Bytes by peer."""
    by_peer: dict[str, int] = {}
    for (peer, cause), size in exchange.stats().received.items():
        if cause in (causes or ("chunk",)):
            by_peer[peer] = by_peer.get(peer, 0) + size
    return by_peer


# --- providers that fail ----------------------------------------------------------------------------------------------


async def test_a_provider_dies_mid_transfer_and_the_other_takes_over(tmp_path: Path) -> None:
    data = noise(8_000_000)
    shared = Whereabouts()
    async with (
        site(shared, tmp_path, 1, upload_mbit_s=60) as first,
        site(shared, tmp_path, 2, upload_mbit_s=60) as second,
        site(shared, tmp_path, 3) as third,
    ):
        digest = await first.exchange.add(a_file(tmp_path / "blob", data))
        await second.exchange.add(tmp_path / "blob")
        heard: list[Progress] = []
        fetching = asyncio.create_task(fetch(third.exchange, digest, on_progress=heard.append))
        await until(lambda: len(received(third.exchange)) == 2 and heard[-1].done > len(data) // 4, every_s=0.005)
        assert not fetching.done()
        await first.die()
        await fetching
        assert await bytes_of(third.exchange, digest) == data
        kept = received(third.exchange)
        assert sum(kept.values()) == len(data), "what the dead one delivered was not fetched again"
        assert kept[first.node] > 0
        assert any("2 peers" in p.message for p in heard)


async def test_all_providers_die_and_a_later_fetch_goes_on_where_it_stopped(tmp_path: Path) -> None:
    data = noise(8_000_000)
    shared = Whereabouts()
    async with site(shared, tmp_path, 3) as third:
        async with site(shared, tmp_path, 1, upload_mbit_s=60) as first:
            digest = await first.exchange.add(a_file(tmp_path / "blob", data))
            fetching = asyncio.create_task(fetch(third.exchange, digest))
            await until(lambda: sum(received(third.exchange).values()) > len(data) // 4, every_s=0.005)
            await first.die()
            with pytest.raises(Unavailable, match="missing"):
                await fetching
        assert not third.exchange.has(digest)
        assert third.node not in shared.providers.get(digest, {}), "no promise of what it does not hold"
        shared.providers.clear()
        async with site(shared, tmp_path, 2) as second:
            await second.exchange.add(tmp_path / "blob")
            await fetch(third.exchange, digest)
        assert await bytes_of(third.exchange, digest) == data
        assert sum(received(third.exchange).values()) == len(data), "no chunk came twice"


async def test_the_only_provider_is_away_for_a_moment(tmp_path: Path) -> None:
    data = noise(8_000_000)
    shared = Whereabouts()
    async with site(shared, tmp_path, 1, upload_mbit_s=60) as first, site(shared, tmp_path, 2) as second:
        digest = await first.exchange.add(a_file(tmp_path / "blob", data))
        fetching = asyncio.create_task(fetch(second.exchange, digest))
        await until(lambda: sum(received(second.exchange).values()) > len(data) // 4, every_s=0.005)
        await first.die()
        before = sum(received(second.exchange).values())
        await asyncio.sleep(1.0)  # the fault lasts this long; nothing is waited for
        await first.come_back()
        await fetching
        assert before < len(data)
        assert await bytes_of(second.exchange, digest) == data
        assert sum(received(second.exchange).values()) == len(data)


class Liar:
    """Serves a manifest of its own making, and for each chunk bytes of the right length and the wrong kind."""

    def __init__(self, manifest: Manifest, chunks: dict[str, bytes]) -> None:
        self.asked = 0
        self._manifest = manifest
        self._chunks = chunks

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/peer/content/{digest}/manifest", self.get_manifest),
        ]

    def served(self) -> AbstractAsyncContextManager[str]:
        return served(self.routes(), take_content=Answering(self.answer).take)

    async def get_manifest(self, request: web.Request) -> web.Response:
        return web.Response(body=self._manifest.encode(), headers={"Cornerstore-Whole": "1"})

    def answer(self, asked: Asked) -> bytes:
        self.asked += 1
        parts = [self._chunks[digest] for digest in asked.chunks]
        return NO_PROBLEM + b"".join(CHUNK_HEADER.pack(len(p)) + p for p in parts)


async def test_a_liar_is_dropped_remembered_and_its_bytes_never_kept(tmp_path: Path) -> None:
    data = noise(4_000_000)
    shared = Whereabouts()
    async with AsyncExitStack() as stack:
        honest = await stack.enter_async_context(site(shared, tmp_path, 1, upload_mbit_s=100))
        digest = await honest.exchange.add(a_file(tmp_path / "blob", data))
        manifest = await honest.exchange.manifest(digest)
        assert manifest is not None
        liar = Liar(manifest, {c.digest: bytes(c.length) for c in manifest.chunks})
        shared.offer(digest, node_name(66), await stack.enter_async_context(liar.served()))
        getter = await stack.enter_async_context(site(shared, tmp_path, 2))
        # The liar alone has nothing that is kept.
        shared.providers[digest].pop(honest.node)
        with pytest.raises(CorruptContent):
            await fetch(getter.exchange, digest)
        assert getter.exchange.stats().stored_bytes == 0
        asked = liar.asked
        assert asked > 0
        shared.offer(digest, honest.node, honest.address)
        await fetch(getter.exchange, digest)
        assert await bytes_of(getter.exchange, digest) == data
        assert liar.asked == asked, "a liar is not asked again"
        assert received(getter.exchange).keys() == {honest.node}
        assert received(getter.exchange, "corrupt").keys() == {node_name(66)}


async def test_a_manifest_that_describes_other_bytes_is_refuted_and_another_is_used(tmp_path: Path) -> None:
    data = noise(1_000_000)
    digest = digest_of(data)
    other = noise(500_000, 9)
    lie = Manifest(digest, len(other), (Chunk(digest_of(other), len(other)),))
    liar = Liar(lie, {digest_of(other): other})
    shared = Whereabouts()
    async with AsyncExitStack() as stack:
        getter = await stack.enter_async_context(site(shared, tmp_path, 2))
        shared.offer(digest, node_name(66), await stack.enter_async_context(liar.served()))
        with pytest.raises(CorruptContent):
            await fetch(getter.exchange, digest)
        assert getter.exchange.stats().stored_bytes == 0
        honest = await stack.enter_async_context(site(shared, tmp_path, 1))
        await honest.exchange.add(a_file(tmp_path / "blob", data))
        await fetch(getter.exchange, digest)
        assert await bytes_of(getter.exchange, digest) == data


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\0\0",
        b"\xff" * 4,
        CHUNK_HEADER.pack(7) + b"[1, 2]\n",
        NO_PROBLEM,
        NO_PROBLEM + b"\xff" * 4,
        NO_PROBLEM + CHUNK_HEADER.pack(1 << 30),
        NO_PROBLEM + b"\0\0",
    ],
    ids=[
        "nothing",
        "half a head",
        "4 GB of a problem",
        "no problem at all",
        "a head",
        "elsewhere, unasked",
        "a gigabyte",
        "half a header",
    ],
)
async def test_a_malformed_answer_is_an_error_not_a_hang(tmp_path: Path, answer: bytes) -> None:
    data = noise(200_000)
    manifest = Manifest(digest_of(data), len(data), (Chunk(digest_of(data), len(data)),))

    class Broken(Liar):
        def answer(self, _: Asked) -> bytes:
            return answer

    shared = Whereabouts()
    async with Broken(manifest, {}).served() as address, site(shared, tmp_path, 2) as getter:
        shared.offer(manifest.digest, node_name(66), address)
        with pytest.raises((CorruptContent, Unavailable)):
            await fetch(getter.exchange, manifest.digest)


async def test_who_claims_all_and_has_nothing_is_named_long_before_the_deadline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "STUCK_S", 3.0)
    shared = Whereabouts()
    async with site(shared, tmp_path, 1) as claims, site(shared, tmp_path, 2) as getter:
        digest = await claims.exchange.add(a_file(tmp_path / "blob", noise(1_000_000)))
        monkeypatch.setattr(claims.exchange, "sizes", lambda digests: [0] * len(digests))
        with pytest.raises(Unavailable, match=f"{claims.node[:8]}: it lacks what it offered"):
            await fetch(getter.exchange, digest)


async def test_who_is_always_busy_is_named_long_before_the_deadline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "STUCK_S", 2.0)
    shared = Whereabouts()
    async with site(shared, tmp_path, 1, max_uploads=0) as busy, site(shared, tmp_path, 2) as getter:
        digest = await busy.exchange.add(a_file(tmp_path / "blob", noise(1_000_000)))
        with pytest.raises(Unavailable, match=f"{busy.node[:8]}: all 0 upload slots are busy"):
            await fetch(getter.exchange, digest)


async def test_who_sends_all_elsewhere_and_gives_nothing_to_who_cannot_go_there_is_a_liar(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has company in the lie: another that fetches, and has nothing either."""
    monkeypatch.setattr(patience, "THIN_S", 1.0)
    data = noise(1_000_000)
    shared = Whereabouts()

    class SendsElsewhere(Liar):
        def answer(self, asked: Asked) -> bytes:
            return NO_PROBLEM + CHUNK_HEADER.pack(ELSEWHERE) * len(asked.chunks)

    async with site(shared, tmp_path, 1, max_uploads=0) as honest, site(shared, tmp_path, 2) as getter:
        digest = await honest.exchange.add(a_file(tmp_path / "blob", data))
        manifest = await honest.exchange.manifest(digest)
        assert manifest is not None
        async with SendsElsewhere(manifest, {}).served() as address:
            shared.providers.clear()
            shared.offer(digest, node_name(66), address)
            monkeypatch.setattr(Meetings, "company", True)
            with pytest.raises(CorruptContent, match="4294967295 bytes where"):
                await fetch(getter.exchange, digest)


async def test_a_stale_provider_record_is_not_the_end(tmp_path: Path) -> None:
    data = noise(1_000_000)
    shared = Whereabouts()
    async with site(shared, tmp_path, 1) as first, site(shared, tmp_path, 2) as second:
        shared.offer(digest_of(data), node_name(77), "127.0.0.1:1")
        shared.offer(digest_of(data), node_name(78), first.address)
        with pytest.raises(Unavailable):
            await fetch(second.exchange, digest_of(data))
        digest = await first.exchange.add(a_file(tmp_path / "blob", data))
        await fetch(second.exchange, digest)
        assert await bytes_of(second.exchange, digest) == data


@pytest.mark.parametrize("on_the_lan", [False, True])
async def test_silent_providers_cost_little(tmp_path: Path, on_the_lan: bool) -> None:
    """They accept connections and never answer."""
    data = noise(1_000_000)
    shared = Whereabouts()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        at = f"127.0.0.1:{silent.getsockname()[1]}"
        is_near = (lambda address: address == at) if on_the_lan else (lambda _: False)
        async with site(shared, tmp_path, 1) as first, site(shared, tmp_path, 2, near=is_near) as second:
            digest = await first.exchange.add(a_file(tmp_path / "blob", data))
            for number in range(60, 65):
                shared.offer(digest, node_name(number), at)
            await second.exchange.fetch(digest, max_bytes=MANY, deadline_s=4)
            assert await bytes_of(second.exchange, digest) == data


async def test_providers_that_all_dropped_it_are_not_found(tmp_path: Path) -> None:
    shared = Whereabouts()
    async with site(shared, tmp_path, 1) as first, site(shared, tmp_path, 2) as second:
        shared.offer(digest_of(b"gone"), first.node, first.address)
        with pytest.raises(ContentNotFound, match="no longer"):
            await fetch(second.exchange, digest_of(b"gone"))


# --- many at once -----------------------------------------------------------------------------------------------------


async def test_with_one_upload_slot_all_are_served_in_the_end(tmp_path: Path) -> None:
    data = noise(2_000_000)
    shared = Whereabouts()
    async with AsyncExitStack() as stack:
        seeder = await stack.enter_async_context(site(shared, tmp_path, 0, max_uploads=1))
        others = [await stack.enter_async_context(site(shared, tmp_path, n)) for n in (1, 2, 3)]
        digest = await seeder.exchange.add(a_file(tmp_path / "blob", data))
        await asyncio.gather(*(fetch(s.exchange, digest) for s in others))
        assert all(s.exchange.has(digest) for s in others)


async def test_what_the_lan_has_does_not_cross_the_uplink(tmp_path: Path) -> None:
    data = noise(8_000_000)
    shared = Whereabouts()
    async with site(shared, tmp_path, 1) as afar, site(shared, tmp_path, 2) as near:
        digest = await afar.exchange.add(a_file(tmp_path / "blob", data))
        await near.exchange.add(tmp_path / "blob")
        async with site(shared, tmp_path, 3, near=lambda address: address == near.address) as third:
            await fetch(third.exchange, digest)
            assert received(third.exchange) == {near.node: len(data)}
            assert await bytes_of(third.exchange, digest) == data


async def test_two_of_one_network_that_fetch_at_once_divide_what_comes_from_afar(tmp_path: Path) -> None:
    """Without that, and with two others to be had it from, each takes most of it from afar."""
    data = noise(8_000_000)
    shared = Whereabouts()
    lans: dict[str, set[str]] = {"a": set(), "b": set()}
    async with AsyncExitStack() as stack:
        seeder = await stack.enter_async_context(site(shared, tmp_path, 0, upload_mbit_s=80))
        pairs: dict[str, list[Site]] = {"a": [], "b": []}
        for number, lan in enumerate("abab", start=1):
            here = site(shared, tmp_path, number, near=lans[lan].__contains__, upload_mbit_s=400)
            pairs[lan].append(await stack.enter_async_context(here))
            lans[lan].add(pairs[lan][-1].address)
        digest = await seeder.exchange.add(a_file(tmp_path / "blob", data))
        await asyncio.gather(*(fetch(s.exchange, digest) for pair in pairs.values() for s in pair))
        for first, second in pairs.values():
            near = received(first.exchange)[second.node] + received(second.exchange)[first.node]
            assert near > 0.65 * len(data), "at best, each gets half from the other"


async def test_sites_that_fetch_at_once_serve_each_other(tmp_path: Path) -> None:
    data = noise(8_000_000)
    shared = Whereabouts()
    async with AsyncExitStack() as stack:
        sites: list[Site] = [
            await stack.enter_async_context(site(shared, tmp_path, n, upload_mbit_s=40)) for n in range(6)
        ]
        digest = await sites[0].exchange.add(a_file(tmp_path / "blob", data))
        await asyncio.gather(*(fetch(s.exchange, digest) for s in sites[1:]))
        sent = sum(size for (_, cause), size in sites[0].exchange.stats().sent.items() if cause == "chunk")
        assert sent < 2 * len(data), "five sites cost the seeder less than two uploads"
        assert len(received(sites[1].exchange)) > 1


async def test_sites_that_fetch_at_once_find_each_other_without_the_directory(tmp_path: Path) -> None:
    data = noise(6_000_000)
    shared = Whereabouts()
    async with AsyncExitStack() as stack:
        sites = [await stack.enter_async_context(site(shared, tmp_path, n, upload_mbit_s=40)) for n in range(4)]
        digest = await sites[0].exchange.add(a_file(tmp_path / "blob", data))
        shared.closed = True
        await asyncio.gather(*(fetch(s.exchange, digest) for s in sites[1:]))
        from_others = received(sites[1].exchange).keys() - {sites[0].node}
        assert from_others <= {s.node for s in sites[2:]}
        assert from_others, "the seeder introduced them"


async def test_who_tells_in_anothers_name_is_refused(tmp_path: Path) -> None:
    shared = Whereabouts()
    async with site(shared, tmp_path, 1) as seeder, aiohttp.ClientSession() as session:
        digest = await seeder.exchange.add(a_file(tmp_path / "blob", noise(500_000)))
        manifest = await seeder.exchange.manifest(digest)
        assert manifest is not None
        offer = SiteDirectory(shared, 2, "127.0.0.1:1").offer(digest).envelope
        told = encode_told(manifest, [False] * len(manifest.chunks), offer)
        for name, expected in ((node_name(3), 400), (node_name(2), 200)):
            async with session.post(
                f"http://{seeder.address}/peer/content/{digest}/have", data=told, headers={"Test-Node": name}
            ) as response:
                assert response.status == expected


async def test_a_new_version_moves_only_what_differs(tmp_path: Path) -> None:
    old = noise(8_000_000)
    new = old[:3_000_000] + b"an edit" + old[3_000_000:]
    shared = Whereabouts()
    async with site(shared, tmp_path, 1) as first, site(shared, tmp_path, 2) as second:
        await fetch(second.exchange, await first.exchange.add(a_file(tmp_path / "old", old)))
        before = sum(received(second.exchange).values())
        digest = await first.exchange.add(a_file(tmp_path / "new", new))
        await fetch(second.exchange, digest)
        assert await bytes_of(second.exchange, digest) == new
        assert sum(received(second.exchange).values()) - before < 2_500_000
        assert second.exchange.stats().stored_bytes < len(old) + 2_500_000


async def test_whole_blobs_are_announced_again_after_a_restart(tmp_path: Path) -> None:
    shared = Whereabouts()
    async with site(shared, tmp_path, 1) as first:
        digest = await first.exchange.add(a_file(tmp_path / "blob", b"x" * 1000))
    shared.providers.clear()
    async with site(shared, tmp_path, 1) as again:
        await until(lambda: again.node in shared.providers.get(digest, {}))


async def test_a_transfer_that_goes_on_after_a_restart_offers_at_once_what_is_here(tmp_path: Path) -> None:
    data = noise(8_000_000)
    shared = Whereabouts()
    async with site(shared, tmp_path, 3) as third, site(shared, tmp_path, 1, upload_mbit_s=60) as first:
        digest = await first.exchange.add(a_file(tmp_path / "blob", data))
        fetching = asyncio.create_task(fetch(third.exchange, digest))
        await until(lambda: sum(received(third.exchange).values()) > len(data) // 4, every_s=0.005)
        fetching.cancel()
        await asyncio.gather(fetching, return_exceptions=True)
    shared.providers.clear()
    async with site(shared, tmp_path, 2, max_uploads=0) as second, site(shared, tmp_path, 3) as again:
        await second.exchange.add(tmp_path / "blob")
        fetching = asyncio.create_task(fetch(again.exchange, digest))
        await until(lambda: again.node in shared.providers[digest])
        assert sum(received(again.exchange).values()) == 0, "nothing new had to come first"
        fetching.cancel()
        await asyncio.gather(fetching, return_exceptions=True)


async def test_an_evicted_blob_is_no_longer_announced(tmp_path: Path) -> None:
    shared = Whereabouts()
    async with site(shared, tmp_path, 1, quota_bytes=1_500_000) as first:
        digest = await first.exchange.add(a_file(tmp_path / "one", noise(1_000_000, 1)))
        await first.exchange.add(a_file(tmp_path / "two", noise(1_000_000, 2)))
        await until(lambda: first.node not in shared.providers[digest])


# --- the disk ---------------------------------------------------------------------------------------------------------


async def test_a_chunk_damaged_on_disk_is_fetched_again_and_only_that(tmp_path: Path) -> None:
    data = noise(4_000_000)
    shared = Whereabouts()
    async with site(shared, tmp_path, 1) as first, site(shared, tmp_path, 2) as second:
        digest = await first.exchange.add(a_file(tmp_path / "blob", data))
        await fetch(second.exchange, digest)
        manifest = await second.exchange.manifest(digest)
        assert manifest is not None
        length = manifest.chunks[0].length
        damage(tmp_path / "blobs2", data[:length])
        assert await bytes_of(second.exchange, digest) == data
        assert sum(received(second.exchange).values()) == len(data) + length
        assert second.exchange.stats().damaged == 1


async def test_a_provider_never_serves_a_damaged_chunk(tmp_path: Path) -> None:
    data = noise(4_000_000)
    shared = Whereabouts()
    async with AsyncExitStack() as stack:
        first, second, third = [await stack.enter_async_context(site(shared, tmp_path, n)) for n in (1, 2, 3)]
        digest = await first.exchange.add(a_file(tmp_path / "blob", data))
        await fetch(second.exchange, digest)
        for offset in range(0, len(data), 1_000_000):
            damage(tmp_path / "blobs1", data[offset : offset + 1000])
        await fetch(third.exchange, digest)
        assert await bytes_of(third.exchange, digest) == data
        assert received(third.exchange, "corrupt") == {}


async def run_child(*arguments: str, prefix: tuple[str, ...] = (), **kwargs: object) -> tuple[str, int, int]:
    """Outcome, growth of memory in KiB, whole blobs held at the end."""
    process = await start_child(*arguments, prefix=prefix, **kwargs)
    output, _ = await process.communicate()
    assert process.returncode == 0, output
    _, outcome, growth, held = output.decode().splitlines()[-1].split()
    return outcome, int(growth), int(held)


async def start_child(*arguments: str, prefix: tuple[str, ...] = (), **kwargs: object) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *prefix,
        sys.executable,
        "-m",
        "tests.integration.content_child",
        *arguments,
        cwd=Path(__file__).parents[2],
        stdout=asyncio.subprocess.PIPE,
        **kwargs,  # type: ignore[arg-type]
    )


def small_files_only() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))


async def test_a_write_that_fails_for_want_of_room_keeps_nothing_of_a_fetch(tmp_path: Path) -> None:
    """A limit on the size of files makes the kernel refuse to take the room."""
    shared = Whereabouts()
    async with site(shared, tmp_path, 1) as first:
        digest = await first.exchange.add(a_file(tmp_path / "blob", noise(8_000_000)))
        outcome, _, held = await run_child(
            "fetch", str(tmp_path / "child"), digest, first.address, preexec_fn=small_files_only
        )
    assert (outcome, held) == ("disk-full", 0)
    assert files_of(tmp_path / "child") == []


async def test_a_write_that_fails_for_want_of_room_keeps_nothing_of_an_add(tmp_path: Path) -> None:
    blob = a_file(tmp_path / "blob", noise(8_000_000))
    outcome, _, held = await run_child("add", str(tmp_path / "child"), str(blob), preexec_fn=small_files_only)
    assert (outcome, held) == ("disk-full", 0)
    assert files_of(tmp_path / "child") == []


@pytest.mark.netns
@pytest.mark.parametrize("options", ["size=24m", "size=96m,nr_inodes=7"], ids=["no bytes left", "no inodes left"])
async def test_a_file_system_that_is_full_is_an_error_and_never_a_corruption(tmp_path: Path, options: str) -> None:
    """Needs root. 30 MB for a file system that is too small from the start, or full in the midst of it."""
    blob = a_file(tmp_path / "blob", noise(30_000_000))
    disk = tmp_path / "disk"
    disk.mkdir()
    script = f"""
        mount -t tmpfs -o {options} none {disk} || exit 1
        "$@" || exit 1
        find {disk}/blobs/packs {disk}/blobs/work -type f | wc -l > {tmp_path}/left
    """
    outcome, _, held = await run_child(
        "add", str(disk / "blobs"), str(blob), prefix=("unshare", "--mount", "sh", "-c", script, "sh")
    )
    assert (outcome, held) == ("disk-full", 0)
    assert (tmp_path / "left").read_text().strip() == "0"


async def test_a_disk_that_fails_is_not_the_peers_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = Whereabouts()
    async with site(shared, tmp_path, 1) as first, site(shared, tmp_path, 2) as second:
        digest = await first.exchange.add(a_file(tmp_path / "blob", noise(2_000_000)))

        def fail(_: Packs, place: Place, data: object) -> None:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), f"packs/{place.pack}")

        with monkeypatch.context() as broken:
            broken.setattr(Packs, "write", fail)
            with pytest.raises(DiskUnusable, match="Read-only file system"):
                await fetch(second.exchange, digest)
        await fetch(second.exchange, digest)
        assert await bytes_of(second.exchange, digest) == noise(2_000_000)


async def test_kill_9_loses_no_chunk_that_was_kept(tmp_path: Path) -> None:
    data = noise(12_000_000)
    shared = Whereabouts()
    async with site(shared, tmp_path, 1, upload_mbit_s=80) as first:
        digest = await first.exchange.add(a_file(tmp_path / "blob", data))
        process = await start_child("fetch", str(tmp_path / "blobs2"), digest, first.address)
        assert process.stdout is not None
        while (line := (await process.stdout.readline()).split()) and int(line[1]) < len(data) // 3:
            pass
        process.kill()
        await process.wait()
        await process.stdout.read()
        async with site(shared, tmp_path, 2) as second:
            kept = second.exchange.stats().stored_bytes
            assert len(data) // 3 <= kept < len(data)
            assert not second.exchange.has(digest)
            await fetch(second.exchange, digest)
            assert await bytes_of(second.exchange, digest) == data
            assert sum(received(second.exchange).values()) == len(data) - kept


async def test_memory_is_flat_whatever_the_size(tmp_path: Path) -> None:
    shared = Whereabouts()
    blob = tmp_path / "blob"
    with blob.open("wb") as file:
        for seed in range(64):
            file.write(noise(1 << 20, seed))
    async with site(shared, tmp_path, 1) as first:
        digest = await first.exchange.add(blob)
        outcome, growth, held = await run_child("fetch", str(tmp_path / "child"), digest, first.address)
    assert (outcome, held) == ("ok", 1)
    assert growth < 24 << 10, f"{growth} KiB for 64 MiB"
    outcome, growth, held = await run_child("add", str(tmp_path / "child2"), str(blob))
    assert (outcome, held) == ("ok", 1)
    assert growth < 16 << 10, f"{growth} KiB for 64 MiB"


async def test_an_addition_that_is_cancelled_leaves_nothing_pinned(tmp_path: Path) -> None:
    async with site(Whereabouts(), tmp_path, 1) as here:
        data = noise(48_000_000)  # long enough to be cancelled in the middle
        adding = asyncio.create_task(here.exchange.add(a_file(tmp_path / "blob", data), pin="published"))
        await until(lambda: here.exchange.stats().stored_bytes > 0)
        adding.cancel()
        with pytest.raises(asyncio.CancelledError):
            await adding
        assert not here.exchange.has(digest_of(data))
        await here.exchange.remove(digest_of(data))  # Conflict, if anything still pinned it
        assert here.exchange.stats().stored_bytes == 0
