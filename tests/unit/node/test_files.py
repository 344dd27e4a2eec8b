from __future__ import annotations

from pathlib import Path

import pytest

from node.files import replace_file
from protocol.problems import ConfigError


def test_a_file_is_replaced_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "new" / "leases.json"
    replace_file(path, b"old")
    replace_file(path, b"new")
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(path.parent.iterdir()) == [path]


def test_what_cannot_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    taken = tmp_path / "config.toml"
    taken.mkdir()
    with pytest.raises(ConfigError, match=r"config\.toml cannot be written"):
        replace_file(taken, b"new")
    assert list(tmp_path.iterdir()) == [taken]
