from __future__ import annotations

import pytest

from dht.swarm.slots import LEAST_PROMISE_S, MOST_PROMISE_S, WAITS_S, Slots


def busy_slots(count: int, took_s: float) -> Slots:
    """All taken at the time 0, by answers that take so long as far as is known."""
    slots = Slots(count)
    number = slots.take("first", -took_s)
    assert number is not None
    slots.give_back(number, 0.0)
    assert all(slots.take(f"n{n}", 0.0) is not None for n in range(count))
    return slots


def test_a_slot_that_was_given_back_is_free() -> None:
    slots = Slots(1)
    number = slots.take("a", 0.0)
    assert number is not None
    assert slots.take("b", 0.0) is None
    slots.give_back(number, 1.0)
    assert slots.busy == 0
    assert slots.take("b", 1.0) is not None


@pytest.mark.parametrize(
    ("count", "took_s", "waiting", "promise_s"), [(1, 4.0, 1, 16.0), (1, 4.0, 3, 32.0), (4, 4.0, 4, 16.0)]
)
def test_the_longer_answers_take_and_the_more_wait_the_longer_is_the_promise(
    count: int, took_s: float, waiting: int, promise_s: float
) -> None:
    slots = busy_slots(count, took_s)
    for n in range(waiting):
        assert slots.take(f"w{n}", 0.0) is None
    assert slots.promise_s(0.0) == promise_s


def test_an_answer_that_takes_longer_than_usual_is_reckoned_with() -> None:
    slots = busy_slots(1, 1.0)
    slots.take("w", 20.0)
    assert slots.promise_s(20.0) == 2 * 2 * 20.0


def test_a_promise_has_bounds() -> None:
    assert busy_slots(1, 0.0).promise_s(0.0) == LEAST_PROMISE_S
    assert busy_slots(1, 1000.0).promise_s(0.0) == MOST_PROMISE_S


def test_who_does_not_come_back_waits_no_more() -> None:
    slots = busy_slots(1, 4.0)
    for n in range(100):
        slots.take(f"gone{n}", 0.0)
    slots.take("w", WAITS_S + 1)
    assert slots.promise_s(WAITS_S + 1) == pytest.approx(2 * 2 * (WAITS_S + 1))
