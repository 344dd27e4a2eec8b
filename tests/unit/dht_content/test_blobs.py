"""The chunk store on a real folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dht.blobs import BlobStore, opened_store
from dht.chunking import manifest_of
from protocol.identifiers import digest_of
from protocol.manifest import Chunk, Manifest
from protocol.problems import ConfigError, Conflict, ContentNotFound, CorruptContent, DiskFull
from tests.content_sites import a_file, noise

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


def chunk_file(tmp_path: Path, part: bytes) -> Path:
    name = digest_of(part).removeprefix("sha256:")
    return tmp_path / "blobs" / "chunks" / name[:2] / name


def files(tmp_path: Path) -> list[Path]:
    return [p for p in (tmp_path / "blobs" / "chunks").rglob("*") if p.is_file()]


def test_chunks_shared_by_two_blobs_are_kept_and_counted_once(store: BlobStore, tmp_path: Path) -> None:
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
    assert chunk_file(tmp_path, shared).exists()
    assert not chunk_file(tmp_path, one).exists()


def test_a_chunk_that_occurs_twice_is_asked_for_once(store: BlobStore) -> None:
    part = noise(70_000)
    manifest = manifest_for([part, part, part])
    assert len(store.begin(manifest).missing) == 1
    store.put(digest_of(part), part)
    assert store.finish(manifest.digest) == ()
    assert store.present_bytes == 70_000
    with store.materialized(manifest.digest) as path:
        assert path.read_bytes() == part * 3


def test_wrong_bytes_are_never_kept(store: BlobStore, tmp_path: Path) -> None:
    part = noise(70_000)
    store.begin(manifest_for([part]))
    with pytest.raises(CorruptContent):
        store.put(digest_of(part), part[:-1] + b"?")
    assert files(tmp_path) == []


def test_chunks_nobody_asked_for_are_not_kept(store: BlobStore, tmp_path: Path) -> None:
    assert store.put(digest_of(b"stray"), b"stray") is False
    assert files(tmp_path) == []


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
    chunk_file(tmp_path, bad).write_bytes(b"rot" + bad[3:])
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
    chunk_file(tmp_path, part).write_bytes(part[:-1])
    with pytest.raises(ContentNotFound), store.materialized(digest):
        pass
    assert not store.has(digest)
    assert list((tmp_path / "blobs" / "work").iterdir()) == []


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
    stray = chunk_file(tmp_path, b"stray")
    stray.parent.mkdir(exist_ok=True)
    stray.write_bytes(b"stray")
    (tmp_path / "blobs" / "work" / "half").write_bytes(b"half")
    with opened_store(tmp_path / "blobs", quota_bytes=QUOTA) as store:
        assert store.present_bytes == 70_000
        assert store.begin(manifest).missing == (1,)
    assert not stray.exists()
    assert not (tmp_path / "blobs" / "work" / "half").exists()


def test_a_file_deleted_behind_our_back_makes_the_blob_partial(tmp_path: Path) -> None:
    part = noise(70_000)
    with opened_store(tmp_path / "blobs", quota_bytes=QUOTA) as store:
        digest = keep(store, [part])
    chunk_file(tmp_path, part).unlink()
    with opened_store(tmp_path / "blobs", quota_bytes=QUOTA) as store:
        assert not store.has(digest)


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
    monkeypatch.setattr("dht.blobs.RESERVE", 1 << 60)
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
