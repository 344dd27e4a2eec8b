"""A service may write as much as it likes: what travels and what is kept of it is bounded."""

from __future__ import annotations

import pytest

from agent.docker.containers import host_options
from agent.docker.networks import Bridge
from agent.runtime import LOG_LINES, MAX_LOG_LINE, Workload, last_lines


@pytest.mark.parametrize(
    "text",
    ["x" * 1_000_000, "\n".join(f"{n} {'y' * 2_000}" for n in range(1_000)), "\r\n\n" * 100_000],
    ids=["one-endless-line", "many-long-lines", "nothing-but-ends"],
)
def test_the_lines_that_travel_are_few_and_short(text: str) -> None:
    lines = last_lines(text)
    assert len(lines) <= LOG_LINES
    assert all(0 < len(line) <= MAX_LOG_LINE for line in lines)


def test_the_last_lines_are_the_ones_that_are_kept() -> None:
    assert last_lines("one\ntwo\n\nthree\n", lines=2) == ("two", "three")


def test_the_engine_keeps_two_megabytes_of_a_service_s_log() -> None:
    workload = Workload(instance="one", digest="d", image="i", mem=16)
    kept = host_options(workload, Bridge("b", "10.0.0.1"), sandbox=None, nano_cpus=None)["log_config"]
    assert (kept.type, kept.config) == ("json-file", {"max-size": "1m", "max-file": "2"})
