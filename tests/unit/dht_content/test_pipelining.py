"""How much is asked of one provider at once, as tables."""

from __future__ import annotations

from itertools import repeat

import pytest

from dht.swarm.pipelining import Pipelining

KB, MB = 1 << 10, 1 << 20
FAST, SLOW, UNKNOWN = 100 * MB, MB, 0.0
RULES = Pipelining(depth=2, few=4, fast_rate=24 * MB)


@pytest.mark.parametrize(
    ("rate", "others", "expected"),
    [
        (UNKNOWN, [], 2),
        (UNKNOWN, [SLOW], 1),
        (FAST, [], 2),
        (SLOW, [SLOW] * 3, 2),
        (SLOW, [SLOW] * 4, 1),
        (FAST, [SLOW], 2),
        (FAST, [FAST], 1),
        (SLOW, [FAST, FAST], 2),
    ],
    ids=[
        "alone",
        "not known yet",
        "fast and alone",
        "one of few",
        "one of many",
        "the fast one",
        "one of two fast",
        "the slow one",
    ],
)
def test_requests_at_once(rate: float, others: list[float], expected: int) -> None:
    assert RULES.requests_at_once(rate, [rate, *others]) == expected


def pieces(rate: float, *, free: int = 10_000, parts: int = 1, rules: Pipelining = RULES, length: int = 64 * KB) -> int:
    return rules.batch(repeat(length, free), rate, free=free, parts=parts)


def test_one_that_has_shown_nothing_is_asked_for_a_first_batch() -> None:
    assert pieces(UNKNOWN) == 1 * MB // (64 * KB)


def test_a_request_lasts_half_a_second_within_bounds() -> None:
    assert pieces(1 * MB) == 512 // 64
    assert pieces(100 * MB) == 64, "as many as a request may name"
    assert pieces(100 * MB, length=MB) == 8, "as much as a request may be"
    assert pieces(KB) == 1, "never nothing"


def test_towards_the_end_all_get_a_share() -> None:
    assert pieces(2 * MB, free=40, parts=2) == 10
    assert pieces(2 * MB, free=40, parts=10) == 2
    assert pieces(2 * MB, free=1) == 1
    assert pieces(2 * MB, free=0) == 0


def test_but_none_that_is_too_small_to_be_worth_a_request() -> None:
    assert pieces(100 * MB, free=8) == 8, "20 ms at this rate are 2 MB"
    assert pieces(100 * MB, free=16, parts=2, rules=Pipelining(least_s=0.0)) == 4


def test_pieces_of_unequal_lengths_are_counted_in_bytes() -> None:
    lengths = [MB // 2, MB // 4, MB // 4, 1]
    assert RULES.batch(lengths, UNKNOWN, free=1000, parts=1) == 3
    assert RULES.batch([3 * MB, 1], UNKNOWN, free=1000, parts=1) == 1, "one larger than a batch goes alone"


@pytest.mark.parametrize(
    ("rates", "expected"),
    [([SLOW], 2), ([FAST], 2), ([SLOW, FAST], 4), ([FAST, FAST], 2), ([FAST, FAST, FAST, SLOW], 5), ([SLOW] * 12, 24)],
)
def test_parts_of_what_is_left(rates: list[float], expected: int) -> None:
    assert RULES.parts(rates) == expected
