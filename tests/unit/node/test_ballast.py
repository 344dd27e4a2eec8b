"""Room put aside for a start on a full disk."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from dht.blobs.room import RESERVE
from node.ballast import BALLAST_BYTES, BALLAST_FILE, START_BYTES, disk_warning, full_disk, put_aside, release_ballast
from protocol.problems import DiskFull, DiskUnusable


def free(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=size))


def test_it_is_given_up_on_a_full_disk_only_and_put_aside_again_when_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ballast = tmp_path / BALLAST_FILE
    put_aside(tmp_path)
    assert ballast.stat().st_blocks * 512 >= BALLAST_BYTES
    free(monkeypatch, START_BYTES)
    release_ballast(tmp_path)
    assert ballast.exists()
    free(monkeypatch, START_BYTES - 1)
    release_ballast(tmp_path)
    assert not ballast.exists()
    free(monkeypatch, BALLAST_BYTES + RESERVE - 1)
    put_aside(tmp_path)
    assert not ballast.exists()
    free(monkeypatch, BALLAST_BYTES + RESERVE)
    put_aside(tmp_path)
    assert ballast.exists()


def test_a_part_of_it_is_not_taken_for_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def filled_meanwhile(descriptor: int, offset: int, size: int) -> None:
        os.truncate(descriptor, size // 2)
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("os.posix_fallocate", filled_meanwhile)
        put_aside(tmp_path)
    put_aside(tmp_path)
    assert (tmp_path / BALLAST_FILE).stat().st_blocks * 512 >= BALLAST_BYTES


def test_a_full_or_unusable_disk_is_a_warning(tmp_path: Path) -> None:
    assert full_disk(RESERVE + 1, tmp_path) is None
    assert isinstance(full_disk(RESERVE, tmp_path), DiskFull)
    assert isinstance(disk_warning(tmp_path / "gone"), DiskUnusable)
