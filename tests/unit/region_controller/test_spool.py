from __future__ import annotations

import asyncio
import errno
import hashlib
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from protocol.problems import BadRequest, DiskFull, TooLarge, TooManyRequests
from region_controller.spool import Spool


async def body(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


def a_spool(folder: Path, **limits: Any) -> Spool:
    return Spool(folder, **{"archive_bytes": 100, "quota_bytes": 150, "uploads": 4, **limits})


async def test_an_upload_is_a_file_for_the_time_of_the_block(tmp_path: Path) -> None:
    spool = a_spool(tmp_path / "spool")
    async with spool.keeping(body(b"one", b"two")) as upload:
        assert upload.path.read_bytes() == b"onetwo"
        assert (upload.size, upload.digest) == (6, "sha256:" + hashlib.sha256(b"onetwo").hexdigest())
    assert not upload.path.exists()


async def test_all_uploads_together_stay_within_the_quota_and_give_their_room_back(tmp_path: Path) -> None:
    spool = a_spool(tmp_path)
    async with spool.keeping(body(b"x" * 90)):
        with pytest.raises(DiskFull) as full:
            async with spool.keeping(body(b"x" * 90)):
                pass
        assert full.value.retry_after
    async with spool.keeping(body(b"x" * 90)) as upload:
        assert upload.size == 90


@pytest.mark.parametrize(("parts", "problem"), [((), BadRequest), ((b"x" * 60, b"x" * 41), TooLarge)])
async def test_a_refused_upload_leaves_nothing(tmp_path: Path, parts: tuple[bytes, ...], problem: type) -> None:
    spool = a_spool(tmp_path)
    with pytest.raises(problem):
        async with spool.keeping(body(*parts)):
            pass
    assert list(tmp_path.iterdir()) == []
    async with spool.keeping(body(b"x" * 100)):
        assert len(list(tmp_path.iterdir())) == 1


async def test_only_so_many_at_once(tmp_path: Path) -> None:
    spool = a_spool(tmp_path, uploads=1)
    async with spool.keeping(body(b"x")):
        with pytest.raises(TooManyRequests) as refused:
            async with spool.keeping(body(b"x")):
                pass
        assert refused.value.retry_after
    async with spool.keeping(body(b"x")):
        assert len(list(tmp_path.iterdir())) == 1


async def test_an_upload_that_stalls_gives_its_slot_back(tmp_path: Path) -> None:
    async def stalled() -> AsyncIterator[bytes]:
        yield b"x"
        await asyncio.Event().wait()

    spool = a_spool(tmp_path, uploads=1, stalled_s=0.05)
    with pytest.raises(BadRequest, match="sent nothing"):
        async with spool.keeping(stalled()):
            pass
    async with spool.keeping(body(b"x")) as upload:
        assert upload.size == 1


def test_what_a_crash_left_is_removed_at_the_start_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "left.csar").write_bytes(b"x")
    (tmp_path / "notes.txt").write_bytes(b"x")
    a_spool(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


async def test_a_full_disk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    spool = a_spool(tmp_path)
    monkeypatch.setattr(tempfile, "NamedTemporaryFile", full)
    with pytest.raises(DiskFull, match="No space left"):
        async with spool.keeping(body(b"x")):
            pass
