"""Verified once, trusted for a while, as long as the file is the same."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dht.chunk_files import TRUST_S, ChunkFiles
from protocol.identifiers import digest_of

DATA = bytes(range(256)) * 100
DIGEST = digest_of(DATA)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def files(tmp_path: Path, clock: Clock) -> ChunkFiles:
    (tmp_path / "work").mkdir()
    files = ChunkFiles(tmp_path, clock)
    with files.temporary() as file:
        file.write(DATA)
        files.keep(file, DIGEST)
    return files


def read(files: ChunkFiles) -> bytes | None:
    buffer = bytearray(len(DATA))
    return bytes(buffer) if files.read(DIGEST, memoryview(buffer)) else None


def damage(files: ChunkFiles, *, unnoticed: bool) -> None:
    """`unnoticed`: as a disk that rots does, without a new time of change."""
    path = Path(files.path(DIGEST))
    before = path.stat()
    with path.open("r+b") as file:
        file.write(b"rot")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + (0 if unnoticed else 1)))


def test_what_was_kept_is_read_and_no_temporary_file_is_left(files: ChunkFiles, tmp_path: Path) -> None:
    assert read(files) == DATA
    assert files.size(DIGEST) == len(DATA)
    assert list((tmp_path / "work").iterdir()) == []


def test_a_file_that_is_not_kept_goes(files: ChunkFiles, tmp_path: Path) -> None:
    with files.temporary() as file:
        file.write(DATA)
    assert list((tmp_path / "work").iterdir()) == []


def test_a_changed_file_is_verified_at_once(files: ChunkFiles) -> None:
    assert read(files) == DATA
    damage(files, unnoticed=False)
    assert read(files) is None
    assert not files.is_intact(DIGEST)


def test_trust_ends(files: ChunkFiles, clock: Clock) -> None:
    damage(files, unnoticed=True)
    assert read(files) is not None
    clock.now = TRUST_S
    assert read(files) is None


def test_a_file_of_another_length_or_none_at_all(files: ChunkFiles) -> None:
    Path(files.path(DIGEST)).write_bytes(DATA[:-1])
    assert read(files) is None
    assert not files.read_into(DIGEST, memoryview(bytearray(len(DATA))))
    assert files.remove(DIGEST) == len(DATA) - 1
    assert files.remove(DIGEST) == 0
    assert files.size(DIGEST) is None
    assert not files.read_into(DIGEST, memoryview(bytearray(len(DATA))))


def test_synced_without_an_error(files: ChunkFiles) -> None:
    files.sync()
    assert read(files) == DATA
