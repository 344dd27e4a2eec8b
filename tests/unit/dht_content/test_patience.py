from __future__ import annotations

from collections.abc import Callable

import pytest

from dht.swarm.patience import BARREN_S, LEAST_BYTES, STUCK_S, THIN_S, Patience


def gives_up_after(each_second: Callable[[Patience, int], None]) -> int:
    patience = Patience(0.0)
    for second in range(1, int(BARREN_S) + 10):
        each_second(patience, second)
        if patience.is_over(second):
            return second - 1
    raise AssertionError("it goes on for ever")


@pytest.mark.parametrize(("bytes_a_second", "seconds"), [(0, STUCK_S), (1, STUCK_S), (LEAST_BYTES, BARREN_S)], ids=str)
def test_what_brings_no_whole_chunk_is_given_up_the_sooner_the_less_it_brings(
    bytes_a_second: int, seconds: float
) -> None:
    assert gives_up_after(lambda patience, now: patience.heard(bytes_a_second, now)) == seconds


@pytest.mark.parametrize(
    ("promise_s", "seconds"), [(0.0, STUCK_S), (1.0, STUCK_S), (50.0, 50.0), (1e9, BARREN_S)], ids=str
)
def test_who_is_busy_is_waited_for_as_long_as_it_promises_within_bounds_however_often_it_says_so(
    promise_s: float, seconds: float
) -> None:
    assert gives_up_after(lambda patience, _: patience.promised(promise_s)) == seconds


def test_a_promise_counts_until_something_comes() -> None:
    patience = Patience(0.0)
    patience.promised(100.0)
    assert not patience.is_over(90.0)
    patience.gained(90.0)
    assert not patience.is_over(90.0 + STUCK_S)
    assert patience.is_over(91.0 + STUCK_S)


def test_who_gains_goes_on() -> None:
    patience = Patience(0.0)
    for second in range(0, 1000, int(STUCK_S)):
        assert not patience.is_over(second)
        patience.gained(second)


def test_that_too_little_comes_is_known_long_before_it_is_over() -> None:
    patience = Patience(0.0)
    assert not patience.is_thin(THIN_S)
    assert patience.is_thin(THIN_S + 1)
    assert not patience.is_over(THIN_S + 1)
