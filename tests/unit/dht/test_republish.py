from __future__ import annotations

from dht.republish import (
    HELD_INTERVAL_S,
    JITTER,
    OURS_INTERVAL_S,
    RETRY_S,
    distance,
    interval,
    is_due,
    owed,
    spread_again_from,
)
from dht.storage import Row


def key(last: int) -> bytes:
    return bytes(19) + bytes([last])


def row(spread_at: float, *, ours: bool = True) -> Row:
    return Row(key(0), b"slot", b"owner", b"via", 1, False, 10_000, ours, spread_at, b"envelope")


def test_intervals_are_spread_by_a_tenth_and_the_same_for_one_key() -> None:
    ours = [interval(key(i), ours=True) for i in range(256)]
    assert min(ours) == OURS_INTERVAL_S * (1 - JITTER)
    assert max(ours) == OURS_INTERVAL_S * (1 + JITTER)
    assert interval(key(7), ours=True) == ours[7]


def test_what_nobody_took_is_due_at_once_and_what_was_spread_after_its_interval() -> None:
    now = 5000.0
    assert is_due(row(0.0), now)
    assert not is_due(row(now - OURS_INTERVAL_S * (1 - JITTER) + 1), now)
    assert is_due(row(now - OURS_INTERVAL_S * (1 - JITTER)), now)
    assert not is_due(row(now - OURS_INTERVAL_S, ours=False), now)
    assert is_due(row(now - HELD_INTERVAL_S, ours=False), now)


def test_too_few_acks_make_a_row_due_again_soon() -> None:
    again = spread_again_from(key(0), 5000.0, ours=True, enough=False)
    assert not is_due(row(again), 5000.0 + RETRY_S - 1)
    assert is_due(row(again), 5000.0 + RETRY_S)
    assert spread_again_from(key(0), 5000.0, ours=True, enough=True) == 5000.0


def test_a_newcomer_is_told_by_the_nearest_holders_only() -> None:
    nearest = [key(1), key(2), key(4), key(8), key(16)]
    assert owed(key(0), key(3), nearest, {key(4)}) == [key(4)]
    assert owed(key(0), key(32), nearest, {key(4)}) == []
    assert owed(key(0), key(3), nearest, {key(64)}) == []


def test_distance_is_exclusive_or() -> None:
    assert distance(key(5), key(6)) == 3
