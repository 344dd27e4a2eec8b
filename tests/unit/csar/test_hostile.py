"""Every hostile archive is refused with its own code, within 5 s, with nothing written and no socket opened."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from csar import REFUSALS, Parser
from protocol.problems import InvalidArchive
from tests.unit.csar.hostile import HOSTILE


class Watch:
    """Audit hooks cannot be removed, so one watch serves the module and is armed while a test looks."""

    def __init__(self) -> None:
        self.armed = False
        self.seen: list[str] = []
        sys.addaudithook(self._on_event)

    def _on_event(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.armed:
            return
        by_name = event == "open" and not isinstance(args[0], int)  # a number: a pipe to the worker
        writes = by_name and isinstance(args[1], str) and set(args[1]) & set("wax+")
        if writes or event in ("socket.__new__", "socket.connect", "socket.getaddrinfo", "os.mkdir", "os.rename"):
            self.seen.append(f"{event} {args[0]!r}")


@pytest.fixture(scope="module")
def watch() -> Watch:
    return Watch()


@pytest.fixture(scope="module")
def parser() -> Iterator[Parser]:
    parser = Parser()
    yield parser
    parser.close()


def test_the_table_is_long_enough() -> None:
    assert len(HOSTILE) >= 43


@pytest.mark.parametrize("name", HOSTILE)
def test_refused_with_its_own_code(name: str, tmp_path: Path, parser: Parser, watch: Watch) -> None:
    code, build = HOSTILE[name]
    path = tmp_path / "hostile.csar"
    path.write_bytes(build())
    before = sorted(tmp_path.parent.rglob("*"))
    watch.seen.clear()
    watch.armed = True
    started = time.monotonic()
    try:
        with pytest.raises(InvalidArchive) as caught:
            parser.describe_sync(path)
    finally:
        watch.armed = False
    assert caught.value.extra["code"] == code
    assert time.monotonic() - started < 5
    assert caught.value.fix
    assert watch.seen == []
    assert sorted(tmp_path.parent.rglob("*")) == before


def test_every_code_but_the_rare_is_met() -> None:
    """The others need a special limit, a special file or a broken worker, and have tests of their own."""
    elsewhere = {"archive-too-large", "file-missing", "group-member", "duplicate-network"} | {
        "parse-timeout",
        "parse-failed",
        "tosca",
    }
    assert {code for code, _ in HOSTILE.values()} | elsewhere == set(REFUSALS)
