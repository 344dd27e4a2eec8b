"""What somebody took away or damaged while nobody looked: the folder, parts of it, the index."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from dht.blobs.chunking import manifest_of
from dht.blobs.intake import put_from_file
from dht.blobs.store import BlobStore, opened_store
from protocol.identifiers import digest_of
from protocol.problems import DiskFull
from tests.content_sites import a_file, files_of, noise
from tests.unit.dht_content.test_blobs import QUOTA, blobs, keep, manifest_for


@pytest.fixture
def store(tmp_path: Path) -> Iterator[BlobStore]:
    with opened_store(blobs(tmp_path), quota_bytes=QUOTA) as opened:
        yield opened


@pytest.mark.parametrize("part", ["", "packs", "scratch", "content.sqlite"])
def test_what_was_taken_away_under_a_running_node_is_made_anew(store: BlobStore, tmp_path: Path, part: str) -> None:
    first = keep(store, [noise(70_000, 1), noise(80_000, 2)])
    store.settle()
    gone = blobs(tmp_path) / part
    shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    coming = manifest_for([noise(90_000, 3)])
    with capture_logs() as logs:
        begun = store.begin(coming)
        assert store.begin(coming).evicted == (), "it is mended once"
    assert [entry["event"] for entry in logs if entry["event"] == "content-taken-away"] == ["content-taken-away"]
    lost = part in {"", "packs"}
    assert store.has(first) is not lost
    assert begun.evicted == ((first,) if lost else ())
    assert store.present_bytes == (0 if lost else 150_000)
    second = keep(store, [noise(90_000, 3)])
    with store.materialized(second) as path:
        assert path.read_bytes() == noise(90_000, 3)


def test_after_the_folder_was_taken_away_a_restart_finds_what_came_since(tmp_path: Path) -> None:
    with opened_store(blobs(tmp_path), quota_bytes=QUOTA) as store:
        keep(store, [noise(70_000, 1)])
        shutil.rmtree(blobs(tmp_path))
        later = keep(store, [noise(80_000, 2)])
    with opened_store(blobs(tmp_path), quota_bytes=QUOTA) as store:
        assert store.held() == [later]


def test_packs_that_are_whole_blobs_outlive_their_index(tmp_path: Path) -> None:
    """What shares chunks with another, or came in part only, is lost; the rest may be the last copy in the mesh."""
    data = noise(3_000_000, 1)
    alone, shares, part = (
        a_file(tmp_path / name, data) for name, data in (("1", data), ("2", data + b"more"), ("3", noise(2_000_000, 2)))
    )
    with opened_store(blobs(tmp_path), quota_bytes=QUOTA * 3) as store:
        for path in (alone, shares):
            manifest = manifest_of(path)
            put_from_file(store.put, manifest, store.begin(manifest).missing, path)
            assert store.vouch(manifest) == ()
        manifest = manifest_of(part)
        put_from_file(store.put, manifest, store.begin(manifest).missing[:-1], part)
    (blobs(tmp_path) / "content.sqlite").write_bytes(b"this is no database " * 100)
    with capture_logs() as logs, opened_store(blobs(tmp_path), quota_bytes=QUOTA * 3) as store:
        digest = digest_of(data)
        assert store.held() == [digest]
        with store.materialized(digest) as path:
            assert path.read_bytes() == data
        assert store.present_bytes == len(data)
    assert [entry["event"] for entry in logs if entry["log_level"] == "error"] == ["database-damaged", "index-lost"]


def test_a_quota_that_was_lowered_is_kept_from_the_next_start_on(tmp_path: Path) -> None:
    with opened_store(blobs(tmp_path), quota_bytes=QUOTA) as store:
        pinned, unused, used = (keep(store, [noise(100_000, n)]) for n in range(3))
        store.pin(pinned, "published")
        store.touch(used)
    with opened_store(blobs(tmp_path), quota_bytes=200_000) as store:
        assert set(store.held()) == {pinned, used}
        assert store.present_bytes == 200_000
    with capture_logs() as logs, opened_store(blobs(tmp_path), quota_bytes=50_000) as store:
        assert store.held() == [pinned]
    assert [entry["pinned_bytes"] for entry in logs if entry["event"] == "quota-exceeded"] == [100_000]
    assert unused not in {pinned, used}


def test_pins_beyond_a_lowered_quota_stay_and_nothing_new_is_kept_until_some_go(tmp_path: Path) -> None:
    with opened_store(blobs(tmp_path), quota_bytes=QUOTA) as store:
        pinned = [keep(store, [noise(100_000, n)]) for n in range(3)]
        for digest in pinned:
            store.pin(digest, "published")
    for _ in range(2):  # a restart, and one more
        with opened_store(blobs(tmp_path), quota_bytes=150_000) as store:
            assert store.held() == sorted(pinned)
            with pytest.raises(DiskFull, match="pinned"):
                keep(store, [noise(1000, 9)])
            assert store.held() == sorted(pinned)
    with opened_store(blobs(tmp_path), quota_bytes=150_000) as store:
        for digest in pinned[1:]:
            store.unpin(digest, "published")
        new = keep(store, [noise(1000, 9)])
        assert {pinned[0], new} <= set(store.held())
        assert store.present_bytes <= 150_000


def test_what_a_killed_intake_left_is_no_blob_for_want_of_others(tmp_path: Path) -> None:
    """The index of a new node knows nothing, and is not lost."""
    with opened_store(blobs(tmp_path), quota_bytes=QUOTA):
        pass
    (blobs(tmp_path) / "packs" / "1").write_bytes(noise(200_000))
    (blobs(tmp_path) / "packs" / "1.kept").write_bytes(b"\1")
    with opened_store(blobs(tmp_path), quota_bytes=QUOTA) as store:
        assert store.held() == []
        assert files_of(blobs(tmp_path)) == []
