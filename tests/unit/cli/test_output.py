"""What reaches a person's terminal."""

from __future__ import annotations

import time

import pytest

from node.cli.output import Output, amount, lasting, readable, remaining, size
from protocol.instances import Progress
from protocol.problems import NoCapacity


def test_control_codes_from_the_network_do_not_reach_the_terminal() -> None:
    assert readable("a\x1b[2Jb\x07\u202ec\nd") == "a\N{REPLACEMENT CHARACTER}[2Jb\N{REPLACEMENT CHARACTER}" + (
        "\N{REPLACEMENT CHARACTER}c\nd"
    )


@pytest.mark.parametrize(
    ("count", "shown"), [(0, "0 B"), (999, "999 B"), (2048, "2.05 kB"), (28_000_000, "28 MB"), (3 * 10**9, "3 GB")]
)
def test_sizes_are_decimal(count: int, shown: str) -> None:
    assert size(count) == shown


def test_a_duration_is_never_said_to_be_over() -> None:
    assert [lasting(s) for s in (0.2, 1, 3600, 7200)] == ["1 s", "1 s", "60 min", "2 h"]


def test_when_to_try_again_is_said_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    Output(json=False).fail(NoCapacity("nobody can", retry_after=5))
    told = capsys.readouterr().err
    assert "Try again in 5 s." in told
    assert "retry_after" not in told


def test_time_that_remains_is_said_in_one_unit() -> None:
    assert remaining(None) == "until stopped"
    assert remaining(time.time() - 5) == "over"
    assert remaining(time.time() + 60.4) == "60 s"
    assert remaining(time.time() + 600) == "10 min"
    assert remaining(time.time() + 3599) == "60 min"
    assert remaining(time.time() + 86_400) == "24 h"
    assert remaining(time.time() + 365 * 86_400) == "365 days"


def test_a_build_counts_steps_and_a_download_bytes() -> None:
    assert amount(Progress("build", "RUN make", 4, 8)) == "4 of 8"
    assert amount(Progress("fetch", "from 1 peer", 4, 8)) == "4 B of 8 B"
    assert amount(Progress("verify", "reading", 4)) == ""


def test_a_bar_shows_bytes_rate_and_peers(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with Output(json=False).progress() as show:
        assert show is not None
        for done in range(1, 6):
            show(Progress("fetch", "from 3 peers", done * 1_000_000, 5_000_000))
    shown = capsys.readouterr().err
    assert "from 3 peers" in shown
    assert "5 MB of 5 MB" in shown
    assert "B/s" in shown
