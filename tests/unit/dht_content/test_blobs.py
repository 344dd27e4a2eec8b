"""The chunk store on a real folder."""

from __future__ import annotations

import os
import random
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from dht.blobs.chunking import manifest_of
from dht.blobs.store import BlobStore, opened_store
from protocol.identifiers import digest_of
from protocol.manifest import Chunk, Manifest
from protocol.problems import ConfigError, Conflict, ContentNotFound, CorruptContent, DiskFull
from tests.content_sites import a_file, damage, files_of, noise

QUOTA = 4_000_000


@pytest.fixture
def store(tmp_path: Path) -> Iterator[BlobStore]:
    with opened_store(tmp_path / "blobs", quota_bytes=QUOTA) as opened:
        yield opened


def manifest_for(parts: list[bytes]) -> Manifest:
    data = b"".join(parts)
    return Manifest(digest_of(data), len(data), tuple(Chunk(digest_of(p), len(p)) for p in parts))


def keep(store: BlobStore, parts: list[bytes]) -> str:
    manifest = manifest_for(parts)
    store.begin(manifest)
    for part in parts:
        store.put(digest_of(part), part)
    assert store.finish(manifest.digest) == ()
    return manifest.digest


def blobs(tmp_path: Path) -> Path:
    return tmp_path / "blobs"


def test_chunks_shared_by_two_blobs_are_kept_and_counted_once(store: BlobStore) -> None:
    shared, one, two = noise(1_000_000, 1), noise(10_000, 2), noise(20_000, 3)
    first = keep(store, [shared, one])
    manifest = manifest_for([shared, two])
    assert store.begin(manifest).missing == (1,)
    assert store.present_bytes == 1_010_000
    store.put(digest_of(two), two)
    assert store.finish(manifest.digest) == ()
    assert store.present_bytes == 1_030_000
    store.remove(first)
    assert store.present_bytes == 1_020_000
    assert store.read_chunk(digest_of(shared)) == shared
    assert store.read_chunk(digest_of(one)) is None


def test_a_chunk_that_occurs_twice_is_asked_for_once(store: BlobStore) -> None:
    part = noise(70_000)
    manifest = manifest_for([part, part, part])
    assert len(store.begin(manifest).missing) == 1
    store.put(digest_of(part), part)
    assert store.finish(manifest.digest) == ()
    assert store.present_bytes == 3 * 70_000, "the blob's file has it three times"
    with store.materialized(manifest.digest) as path:
        assert path.read_bytes() == part * 3


def test_wrong_bytes_are_never_kept(store: BlobStore) -> None:
    part = noise(70_000)
    store.begin(manifest_for([part]))
    with pytest.raises(CorruptContent):
        store.put(digest_of(part), part[:-1] + b"?")
    assert store.present_bytes == 0
    assert store.read_chunk(digest_of(part)) is None


def test_chunks_nobody_asked_for_are_not_kept(store: BlobStore, tmp_path: Path) -> None:
    assert store.put(digest_of(b"stray"), b"stray") is False
    assert files_of(blobs(tmp_path)) == []


def test_a_lie_about_a_length_does_not_keep_others_from_the_chunk(store: BlobStore) -> None:
    part = noise(70_000)
    lie = Manifest(digest_of(b"something else"), 1000, (Chunk(digest_of(part), 1000),))
    store.begin(lie)
    with store.holding(lie.digest):
        keep(store, [part])
        assert store.read_chunk(digest_of(part)) == part


def test_a_manifest_of_other_bytes_is_found_out(store: BlobStore) -> None:
    part = noise(70_000)
    lie = Manifest(digest_of(b"something else"), len(part), (Chunk(digest_of(part), len(part)),))
    store.begin(lie)
    store.put(digest_of(part), part)
    with pytest.raises(CorruptContent):
        store.finish(lie.digest)
    assert not store.has(lie.digest)


def test_a_damaged_chunk_is_not_served_and_its_blobs_are_partial_again(store: BlobStore, tmp_path: Path) -> None:
    good, bad = noise(70_000, 1), noise(70_000, 2)
    digest = keep(store, [good, bad])
    damage(blobs(tmp_path), bad)
    assert store.read_chunk(digest_of(bad)) is None
    assert store.read_chunk(digest_of(good)) == good
    assert not store.has(digest)
    assert store.damaged == 1
    manifest = store.manifest(digest)
    assert manifest is not None
    assert store.begin(manifest).missing == (1,)


def test_damage_is_noticed_when_a_file_is_made_of_it(store: BlobStore, tmp_path: Path) -> None:
    part = noise(70_000)
    digest = keep(store, [part])
    damage(blobs(tmp_path), part)
    with pytest.raises(ContentNotFound), store.materialized(digest):
        pass
    assert not store.has(digest)


def test_a_lost_file_is_told_once_and_its_chunks_are_counted(store: BlobStore, tmp_path: Path) -> None:
    parts = [noise(70_000, seed) for seed in range(5)]
    digest = keep(store, parts)
    for pack in (blobs(tmp_path) / "packs").iterdir():
        pack.unlink()
    with capture_logs() as logs, pytest.raises(ContentNotFound, match="5 chunks"), store.materialized(digest):
        pass
    assert [entry["event"] for entry in logs] == ["chunk-damaged"]
    assert "No such file" in logs[0]["why"]
    assert store.damaged == 5


def test_a_file_cut_short_is_noticed_and_mended(store: BlobStore, tmp_path: Path) -> None:
    parts = [noise(70_000, 1), noise(70_000, 2)]
    digest = keep(store, parts)
    pack = next(f for f in files_of(blobs(tmp_path)) if f.stat().st_size == 140_000)
    os.truncate(pack, 100_000)
    with pytest.raises(ContentNotFound, match="1 chunks"), store.materialized(digest):
        pass
    assert keep(store, parts) == digest
    with store.materialized(digest) as path:
        assert path.read_bytes() == b"".join(parts)


def test_a_blob_of_its_own_chunks_is_handed_out_as_it_is(store: BlobStore, tmp_path: Path) -> None:
    parts = [noise(70_000, 1), noise(70_000, 2)]
    digest = keep(store, parts)
    with store.materialized(digest) as path:
        assert path.parent == blobs(tmp_path) / "packs"
        assert path.read_bytes() == b"".join(parts)
        assert path.stat().st_mode & 0o222 == 0


def test_a_blob_with_chunks_of_others_is_copied_and_the_copy_counts(store: BlobStore, tmp_path: Path) -> None:
    shared, one, two, idle = noise(1_000_000, 1), noise(10_000, 2), noise(20_000, 3), noise(1_800_000, 4)
    first, second, third = keep(store, [shared, one]), keep(store, [two, shared]), keep(store, [idle])
    store.pin(first, "running")
    assert store.evicted_for_copies() == []
    with store.materialized(second) as path:
        assert path.parent == blobs(tmp_path) / "scratch"
        assert path.read_bytes() == two + shared
        assert path.stat().st_mode & 0o222 == 0
        with pytest.raises(DiskFull):
            store.begin(manifest_for([noise(2_000_000, 5)]))
        assert store.held() == sorted([first, second, third])
    assert not path.exists()
    fourth = keep(store, [noise(900_000, 6)])
    with store.materialized(second):
        assert store.evicted_for_copies() == [third]
    assert store.held() == sorted([first, second, fourth])


def test_the_room_of_what_only_the_evicted_used_is_free_again(store: BlobStore, tmp_path: Path) -> None:
    shared, one, two = noise(200_000, 1), noise(1_000_000, 2), noise(20_000, 3)
    first, second = keep(store, [shared, one]), keep(store, [shared, two])
    assert store.remove(first)
    assert sum(f.stat().st_blocks for f in files_of(blobs(tmp_path))) * 512 < 300_000
    with store.materialized(second) as path:
        assert path.read_bytes() == shared + two
    assert keep(store, [shared, one]) == first
    assert store.remove(first)
    assert store.remove(second)
    assert files_of(blobs(tmp_path)) == []
    assert store.present_bytes == 0


def test_what_was_kept_is_there_after_reopening_and_so_are_pins_and_order(tmp_path: Path) -> None:
    parts = [noise(1_500_000, seed) for seed in range(3)]
    with opened_store(tmp_path / "blobs", quota_bytes=QUOTA) as store:
        pinned, used = keep(store, parts[:1]), keep(store, parts[1:2])
        store.pin(pinned, "published here")
    with opened_store(tmp_path / "blobs", quota_bytes=QUOTA) as store:
        assert store.held() == sorted([pinned, used])
        assert store.pins(pinned) == {"published here"}
        assert store.begin(manifest_for(parts[2:])).evicted == (used,)


def test_use_counts_across_restarts(tmp_path: Path) -> None:
    parts = [noise(1_500_000, seed) for seed in range(3)]
    with opened_store(tmp_path / "blobs", quota_bytes=QUOTA) as store:
        first, second = keep(store, parts[:1]), keep(store, parts[1:2])
        store.touch(first)
    with opened_store(tmp_path / "blobs", quota_bytes=QUOTA) as store:
        assert store.begin(manifest_for(parts[2:])).evicted == (second,)


def test_after_a_crash_strays_go_and_kept_chunks_count(tmp_path: Path) -> None:
    here, absent = noise(70_000, 1), noise(70_000, 2)
    manifest = manifest_for([here, absent])
    with opened_store(tmp_path / "blobs", quota_bytes=QUOTA) as store:
        store.begin(manifest)
        store.put(digest_of(here), here)
    for stray in ("packs/77", "packs/77.kept", "scratch/half"):
        (blobs(tmp_path) / stray).write_bytes(b"stray")
    with opened_store(tmp_path / "blobs", quota_bytes=QUOTA) as store:
        assert store.present_bytes == 70_000
        assert store.begin(manifest).missing == (1,)
        assert len(files_of(blobs(tmp_path))) == 2


def test_what_was_written_and_not_noted_is_fetched_again(tmp_path: Path) -> None:
    """As after a power cut: the note says less, or more, than the disk has."""
    parts = [noise(70_000, seed) for seed in range(3)]
    manifest = manifest_for(parts)
    with opened_store(tmp_path / "blobs", quota_bytes=QUOTA) as store:
        store.begin(manifest)
        for part in parts:
            store.put(digest_of(part), part)
    (note,) = (blobs(tmp_path) / "packs").glob("*.kept")
    assert note.read_bytes() == b"\1\1\1"
    note.write_bytes(b"\1\1")
    damage(blobs(tmp_path), parts[0])
    with opened_store(tmp_path / "blobs", quota_bytes=QUOTA) as store:
        assert store.begin(manifest).missing == (2,)
        store.put(digest_of(parts[2]), parts[2])
        assert store.finish(manifest.digest) == (0,)
        store.put(digest_of(parts[0]), parts[0])
        assert store.finish(manifest.digest) == ()


def test_room_that_a_crash_left_taken_is_freed(tmp_path: Path) -> None:
    """Killed after the index forgot a blob and before the holes were punched."""
    shared, one = noise(70_000, 1), noise(1_000_000, 2)
    with opened_store(tmp_path / "blobs", quota_bytes=QUOTA) as store:
        first, second = keep(store, [one, shared]), keep(store, [shared])
        pack = max(files_of(blobs(tmp_path)), key=lambda f: f.stat().st_blocks)
        before = pack.read_bytes()
        store.remove(first)
        pack.write_bytes(before)
    with opened_store(tmp_path / "blobs", quota_bytes=QUOTA) as store:
        assert pack.stat().st_blocks * 512 < 100_000
        with store.materialized(second) as path:
            assert path.read_bytes() == shared


def test_a_file_deleted_behind_our_back_makes_the_blob_partial(tmp_path: Path) -> None:
    part = noise(70_000)
    with opened_store(tmp_path / "blobs", quota_bytes=QUOTA) as store:
        digest = keep(store, [part])
    for file in files_of(blobs(tmp_path)):
        file.unlink()
    with opened_store(tmp_path / "blobs", quota_bytes=QUOTA) as store:
        assert not store.has(digest)
        assert keep(store, [part]) == digest


def test_a_folder_of_the_old_layout_is_refused(tmp_path: Path) -> None:
    (blobs(tmp_path) / "chunks").mkdir(parents=True)
    with pytest.raises(ConfigError, match="older") as caught, opened_store(blobs(tmp_path), quota_bytes=1):
        pass
    assert "publish again" in caught.value.fix


def test_what_is_begun_is_reserved(store: BlobStore) -> None:
    first = manifest_for([noise(3_000_000, 1)])
    store.begin(first)
    with store.holding(first.digest), pytest.raises(DiskFull):
        store.begin(manifest_for([noise(2_000_000, 2)]))


def test_nothing_is_evicted_in_vain(store: BlobStore) -> None:
    small = keep(store, [noise(1_000_000, 1)])
    with pytest.raises(DiskFull):
        store.begin(manifest_for([noise(4_100_000, 2)]))
    assert store.held() == [small]


def test_a_full_disk_shrinks_the_quota(store: BlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    old = keep(store, [noise(1_000_000, 1)])
    monkeypatch.setattr("dht.blobs.room.RESERVE", 1 << 60)
    digest = manifest_for([noise(900_000, 2)])
    assert store.begin(digest).evicted == (old,)
    with pytest.raises(DiskFull):
        store.begin(manifest_for([noise(1_000_000, 3)]))


def test_what_is_in_use_is_not_removed(store: BlobStore) -> None:
    digest = keep(store, [noise(70_000)])
    with store.materialized(digest), pytest.raises(Conflict, match="in use"):
        store.remove(digest)
    assert store.remove(digest)


def test_a_second_process_on_the_same_folder_is_refused(store: BlobStore, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="another process"), opened_store(tmp_path / "blobs", quota_bytes=1):
        pass


def test_a_version_with_an_edit_shares_most_chunks(tmp_path: Path) -> None:
    old = noise(8_000_000)
    new = old[:4_000_000] + b"an edit" + old[4_000_000:]
    before = {c.digest for c in manifest_of(a_file(tmp_path / "old", old)).chunks}
    after = manifest_of(a_file(tmp_path / "new", new)).chunks
    moved = sum(c.length for c in after if c.digest not in before)
    assert 0 < moved < 2_500_000


def test_many_threads_put_and_read_at_once(tmp_path: Path) -> None:
    """Each blob shares a part with the next; all are brought by two threads each, which read what is there."""
    parts = [noise(20_000 + seed, seed) for seed in range(24)]
    blobs_parts = [[*parts[i : i + 5], parts[i]] for i in range(0, 20, 2)]

    def bring(wanted: list[bytes]) -> str:
        manifest = manifest_for(wanted)
        with store.holding(manifest.digest):
            store.begin(manifest)
            for part in wanted:
                store.put(digest_of(part), part)
                assert store.read_chunk(digest_of(part)) == part
            assert store.finish(manifest.digest) == ()
            with store.materialized(manifest.digest) as path:
                assert path.read_bytes() == b"".join(wanted)
        return manifest.digest

    with opened_store(tmp_path / "blobs", quota_bytes=10**7) as store, ThreadPoolExecutor(8) as pool:
        digests = set(pool.map(bring, [*blobs_parts, *blobs_parts]))
        assert store.held() == sorted(digests)
        for digest in digests:
            store.remove(digest)
        assert store.present_bytes == 0
        assert files_of(tmp_path / "blobs") == []


def test_who_reads_while_blobs_come_and_go_gets_right_bytes_or_none(tmp_path: Path) -> None:
    """Each blob shares parts with the next, and there is room for two: what is evicted leaves parts to others."""
    parts = [noise(30_000 + seed, seed) for seed in range(8)]
    sets = [[parts[i], parts[(i + 1) % 8], parts[(i + 2) % 8]] for i in range(8)]
    stop = threading.Event()
    got: Counter[bool] = Counter()

    def read(seed: int) -> None:
        chance = random.Random(seed)
        while not stop.is_set():
            part = chance.choice(parts)
            data = store.read_chunk(digest_of(part))
            got[data is not None] += 1
            assert data is None or data == part

    with opened_store(tmp_path / "blobs", quota_bytes=150_000) as store, ThreadPoolExecutor(3) as pool:
        pinned = keep(store, [noise(20_000, 99)])
        store.pin(pinned, "published")
        readers = [pool.submit(read, seed) for seed in range(3)]
        try:
            for turn in range(60):
                keep(store, sets[turn * 3 % 8])
        finally:
            stop.set()
        for reader in readers:
            reader.result()
        assert store.has(pinned)
        assert store.damaged == 0, "what was evicted is not damaged"
    assert got[True] > 100
    assert got[False] > 100
