"""A file becomes a blob: read once, written as it is hashed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from dht.blobs.intake import put_from_file, size_of
from dht.blobs.store import BlobStore, opened_store
from protocol.problems import BadRequest, Conflict, DiskFull
from tests.content_sites import a_file, files_of, noise

DATA = noise(3_000_000)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[BlobStore]:
    with opened_store(tmp_path / "blobs", quota_bytes=5_000_000) as opened:
        yield opened


def add(store: BlobStore, path: Path) -> tuple[str, tuple[int, ...]]:
    """The digest, and what had to be read once more."""
    with store.intake(path.stat().st_size) as intake:
        manifest = intake.read(path, lambda done: None)
        missing = store.begin(manifest, intake).missing
        put_from_file(store.put, manifest, missing, path)
        assert store.vouch(manifest) == ()
    return manifest.digest, missing


def bytes_of(store: BlobStore, digest: str) -> bytes:
    with store.materialized(digest) as path:
        return path.read_bytes()


def test_all_is_kept_while_it_is_read(store: BlobStore, tmp_path: Path) -> None:
    digest, missing = add(store, a_file(tmp_path / "file", DATA))
    assert missing == ()
    assert store.present_bytes == len(DATA)
    assert bytes_of(store, digest) == DATA


def test_what_is_here_is_not_written_again(store: BlobStore, tmp_path: Path) -> None:
    first, _ = add(store, a_file(tmp_path / "file", DATA))
    assert add(store, tmp_path / "file") == (first, ())
    assert store.present_bytes == len(DATA)
    assert len(files_of(tmp_path / "blobs")) == 2
    second, missing = add(store, a_file(tmp_path / "newer", b"an edit" + DATA))
    assert missing == ()
    assert store.present_bytes < len(DATA) + 1_100_000
    store.pin(second, "published")
    assert bytes_of(store, first) == DATA


def test_what_finds_no_room_at_first_is_read_once_more(store: BlobStore, tmp_path: Path) -> None:
    old, _ = add(store, a_file(tmp_path / "old", noise(3_500_000, 2)))
    digest, missing = add(store, a_file(tmp_path / "file", DATA))
    assert missing != ()
    assert store.held() == [digest]
    assert bytes_of(store, digest) == DATA
    assert not store.has(old)


def test_without_room_nothing_is_kept_and_nothing_evicted(store: BlobStore, tmp_path: Path) -> None:
    old, _ = add(store, a_file(tmp_path / "old", noise(2_000_000, 2)))
    with pytest.raises(DiskFull):
        add(store, a_file(tmp_path / "large", noise(5_100_000, 3)))
    assert store.held() == [old]
    assert store.present_bytes == 2_000_000
    assert len(files_of(tmp_path / "blobs")) == 2


def test_what_is_not_begun_goes(store: BlobStore, tmp_path: Path) -> None:
    with store.intake(len(DATA)) as intake:
        intake.read(a_file(tmp_path / "file", DATA), lambda done: None)
        assert store.present_bytes == len(DATA)
    assert store.present_bytes == 0
    assert files_of(tmp_path / "blobs") == []
    add(store, a_file(tmp_path / "other", noise(4_900_000, 2)))


def test_a_file_that_changes_while_it_is_read(store: BlobStore, tmp_path: Path) -> None:
    file = a_file(tmp_path / "file", DATA)

    def meddle(done: int) -> None:
        os.utime(file, ns=(1, 1))

    with store.intake(len(DATA)) as intake, pytest.raises(Conflict, match="changed"):
        intake.read(file, meddle)
    with store.intake(0) as intake:  # there is no room to take: it is read once more, and is another by then
        manifest = intake.read(file, lambda done: None)
        missing = store.begin(manifest, intake).missing
        a_file(file, DATA[:-1] + b"?")
        with pytest.raises(Conflict, match="changed"):
            put_from_file(store.put, manifest, missing, file)


def test_a_file_that_cannot_be_read(store: BlobStore, tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="absent"):
        size_of(tmp_path / "absent")
    with store.intake(0) as intake, pytest.raises(BadRequest):
        intake.read(tmp_path / "absent", lambda done: None)
