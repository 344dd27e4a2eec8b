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
    arguments = (str(disk / "blobs"), str(pinned), str(later), str(disk / "ballast"))
    assert await on_a_disk_of_its_own(disk, "tests.integration.full_disk_child", *arguments) == "ok"


@pytest.mark.netns
async def test_a_node_starts_on_a_disk_that_others_filled_while_it_was_down(tmp_path: Path) -> None:
    """SQLite needs room to open a database, even to read it."""
    disk = tmp_path / "disk"
    assert await on_a_disk_of_its_own(disk, "tests.integration.full_start_child", str(disk / "data")) == "ok"


async def on_a_disk_of_its_own(disk: Path, module: str, *arguments: str) -> str:
    """The last line that a module says which runs with a file system of 90 MB there."""
    disk.mkdir()
    script = f'mount -t tmpfs -o size=90m none {disk} || exit 1; "$@"'
    process = await asyncio.create_subprocess_exec(
        *("unshare", "--mount", "sh", "-c", script, "sh"),
        *(sys.executable, "-m", module, *arguments),
        cwd=REPOSITORY,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
    return output.decode().splitlines()[-1]
