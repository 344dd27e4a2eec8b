"""A node is found again where it was."""

from __future__ import annotations

from pathlib import Path

import pytest

from node.ports import FILE_NAME, Ports, keep_ports, last_ports


def test_what_was_kept_is_known_again(tmp_path: Path) -> None:
    assert last_ports(tmp_path) == Ports()
    keep_ports(tmp_path, Ports(rest=40000, peer=40001))
    assert last_ports(tmp_path) == Ports(rest=40000, peer=40001)


@pytest.mark.parametrize("text", ["", "[]", '{"rest": 70000}', '{"peer": "x"}'])
def test_what_is_no_port_counts_as_none(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE_NAME).write_text(text)
    assert last_ports(tmp_path) == Ports()


def test_a_disk_that_takes_nothing_stops_nobody(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    keep_ports(tmp_path / "file", Ports(rest=40000))
    assert last_ports(tmp_path / "file") == Ports()
