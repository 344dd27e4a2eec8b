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
from region_controller.spool import LEAST_BYTES, Spool


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


@pytest.mark.parametrize("pause_s", [3600.0, 0.01])
async def test_an_upload_that_stalls_or_trickles_gives_its_slot_back(tmp_path: Path, pause_s: float) -> None:
    async def slow() -> AsyncIterator[bytes]:
        while True:
            yield b"x"
            await asyncio.sleep(pause_s)

    spool = a_spool(tmp_path, uploads=1, stalled_s=0.1)
    with pytest.raises(BadRequest, match=r"the upload sent \d+ bytes in 0.1 s"):
        async with spool.keeping(slow()):
            pass
    async with spool.keeping(body(b"x")) as upload:
        assert upload.size == 1


async def test_an_upload_that_comes_fast_enough_may_take_its_time(tmp_path: Path) -> None:
    async def steady() -> AsyncIterator[bytes]:
        for _ in range(3):
            await asyncio.sleep(0.1)
            yield b"x" * LEAST_BYTES

    spool = a_spool(tmp_path, archive_bytes=4 * LEAST_BYTES, stalled_s=0.25)
    async with spool.keeping(steady()) as upload:
        assert upload.size == 3 * LEAST_BYTES


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
