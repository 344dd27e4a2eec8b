"""A disk that others fill: new work is refused, nothing is lost, and all goes on by itself when there is room again."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from tests.content_sites import a_file, noise

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.netns
async def test_a_disk_filled_by_others_costs_nothing_but_the_work_refused(tmp_path: Path) -> None:
    """Needs root: the disk is a file system of its own, of 90 MB. The store is closed while it is full once more."""
    pinned, later = (a_file(tmp_path / str(n), noise(8_000_000, n)) for n in (1, 2))
    disk = tmp_path / "disk"
    disk.mkdir()
    arguments = (str(disk / "blobs"), str(pinned), str(later), str(disk / "ballast"))
    script = f'mount -t tmpfs -o size=90m none {disk} || exit 1; "$@"'
    process = await asyncio.create_subprocess_exec(
        *("unshare", "--mount", "sh", "-c", script, "sh"),
        *(sys.executable, "-m", "tests.integration.full_disk_child", *arguments),
        cwd=REPOSITORY,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
    assert output.decode().splitlines()[-1] == "ok"
