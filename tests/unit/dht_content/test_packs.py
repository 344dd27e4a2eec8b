"""Packs: written at their offsets, verified once, trusted for a while, as long as nobody else changes the file."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from dht.blobs.packs import TRUST_S, Packs, Place
from protocol.identifiers import digest_of
from tests.content_sites import damage, noise

DATA = [noise(20_000, seed) for seed in range(3)]
PLACES = [Place(1, slot, slot * 20_000, 20_000) for slot in range(3)]


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def packs(tmp_path: Path, clock: Clock) -> Packs:
    (tmp_path / "packs").mkdir()
    packs = Packs(tmp_path, clock)
    packs.allocate(1, PLACES, 60_000)
    for slot in (2, 0):
        write(packs, slot)
    return packs


def write(packs: Packs, slot: int) -> None:
    packs.write(PLACES[slot], DATA[slot])
    packs.keep(PLACES[slot])


def read(packs: Packs, slot: int) -> bytes | None:
    buffer = bytearray(20_000)
    return bytes(buffer) if packs.read(PLACES[slot], digest_of(DATA[slot]), memoryview(buffer)) else None


def rot_unnoticed(path: Path, part: bytes) -> None:
    """As a disk that rots does, without a new time of change."""
    before = (path / "packs" / "1").stat()
    damage(path, part)
    os.utime(path / "packs" / "1", ns=(before.st_atime_ns, before.st_mtime_ns))


def test_chunks_are_where_the_blob_has_them(packs: Packs, tmp_path: Path) -> None:
    assert [packs.has(place) for place in PLACES] == [True, False, True]
    assert (tmp_path / "packs" / "1").read_bytes() == DATA[0] + bytes(20_000) + DATA[2]
    assert (tmp_path / "packs" / "1.kept").read_bytes() == b"\1\0\1"
    assert read(packs, 2) == DATA[2]
    assert packs.as_file(1, 60_000) == tmp_path / "packs" / "1"
    assert packs.as_file(1, 59_999) is None
    assert packs.as_file(2, 0) is None


def test_what_is_not_kept_is_not_read(packs: Packs) -> None:
    buffer = memoryview(bytearray(20_000))
    assert not packs.read_into(PLACES[1], buffer)
    assert not packs.read_into(Place(2, 0, 0, 20_000), buffer)
    assert not packs.read_into(PLACES[0], buffer[:-1])
    assert packs.read_into(PLACES[0], buffer)
    with pytest.raises(FileNotFoundError):
        packs.write(Place(2, 0, 0, 1), b"x")


def test_a_change_by_others_is_noticed_at_once(packs: Packs, tmp_path: Path) -> None:
    assert read(packs, 0) == DATA[0]
    damage(tmp_path, DATA[0])
    assert packs.untrusted(PLACES) == [0, 1, 2]
    assert read(packs, 0) is None
    assert not packs.is_intact(PLACES[0], digest_of(DATA[0]))
    assert read(packs, 2) == DATA[2]
    assert packs.untrusted(PLACES) == [0, 1]


def test_own_writes_are_no_change_by_others(packs: Packs) -> None:
    write(packs, 1)
    assert packs.untrusted(PLACES) == []
    packs.drop(PLACES[:1])
    assert packs.untrusted(PLACES) == [0]


def test_trust_ends(packs: Packs, clock: Clock, tmp_path: Path) -> None:
    rot_unnoticed(tmp_path, DATA[0])
    assert read(packs, 0) is not None
    clock.now = TRUST_S
    assert read(packs, 0) is None


def test_trust_can_be_withdrawn(packs: Packs, tmp_path: Path) -> None:
    rot_unnoticed(tmp_path, DATA[0])
    packs.distrust([1])
    assert read(packs, 0) is None
    assert read(packs, 2) == DATA[2]


def test_what_is_dropped_takes_no_room(packs: Packs, tmp_path: Path) -> None:
    file = tmp_path / "packs" / "1"
    before = file.stat().st_blocks
    packs.drop([PLACES[0], PLACES[1]])
    assert (file.stat().st_blocks * 512, file.stat().st_size) <= (before * 512 - 32_000, 60_000)
    assert (tmp_path / "packs" / "1.kept").read_bytes() == b"\0\0\1"
    assert read(packs, 2) == DATA[2]
    packs.remove(1)
    packs.remove(1)
    assert list((tmp_path / "packs").iterdir()) == []
    assert packs.untrusted(PLACES) == [0, 1, 2]


def test_after_reopening_what_was_kept_is_known_and_nothing_is_trusted(packs: Packs, tmp_path: Path) -> None:
    packs.as_file(1, 60_000)
    again = Packs(tmp_path)
    again.open({1: (3, 60_000), 7: (1, 10)})
    assert [again.has(place) for place in PLACES] == [True, False, True]
    assert not again.has(Place(7, 0, 0, 10))
    assert again.untrusted(PLACES) == [0, 1, 2]
    assert read(again, 0) == DATA[0]
    assert again.new() == 8
    write(again, 1)
    assert (tmp_path / "packs" / "1").read_bytes() == b"".join(DATA)


def test_a_file_cut_short_is_worth_nothing(packs: Packs, tmp_path: Path) -> None:
    os.truncate(tmp_path / "packs" / "1", 50_000)
    again = Packs(tmp_path)
    again.open({1: (3, 60_000)})
    assert not any(again.has(place) for place in PLACES)


def test_synced_without_an_error(packs: Packs) -> None:
    packs.sync()
    assert read(packs, 0) == DATA[0]


def test_a_file_system_that_became_read_only_still_serves(packs: Packs, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "chmod", refuse)
    assert packs.as_file(1, 60_000) is not None
