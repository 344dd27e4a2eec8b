"""Flash crowds in virtual time: the seed sends little more than once, and completion hardly grows with N."""

from __future__ import annotations

import pytest

from tests.sim.swarm import SEED_NODE, Swarm

UPLINK = 12.5e6
PIECES, LENGTH = 60, 320_000
ONCE_S = PIECES * LENGTH / UPLINK
"""The whole blob, once, over one uplink."""


def crowd(size: int, **options: object) -> Swarm:
    swarm = Swarm(pieces=PIECES, length=LENGTH, **options)  # type: ignore[arg-type]
    swarm.holder(SEED_NODE, UPLINK)
    for number in range(size):
        swarm.asker(f"n{number}", UPLINK)
    return swarm


def uploads(swarm: Swarm) -> float:
    return swarm.nodes[SEED_NODE].sent_chunks / PIECES


@pytest.mark.parametrize("size", [1, 2, 4, 8, 16])
def test_a_crowd_costs_the_seed_about_one_copy_and_everybody_about_the_same_time(size: int) -> None:
    swarm = crowd(size)
    assert swarm.run() < 1.9 * ONCE_S
    assert uploads(swarm) <= 1.2


def test_without_sending_elsewhere_the_seed_sends_more() -> None:
    plain = crowd(16, super_seeding=False)
    plain.run()
    assert uploads(plain) > 1.3


def test_takers_that_die_with_what_only_they_got_cost_a_second_copy() -> None:
    swarm = crowd(8)
    for number in range(4):
        swarm.kill(f"n{number}", at=0.6 * ONCE_S)
    assert swarm.run() < 8 * ONCE_S
    assert uploads(swarm) <= 2.2


def test_a_slow_taker_does_not_hold_the_others_up() -> None:
    swarm = crowd(4)
    swarm.asker("slow", UPLINK / 100)
    swarm.run()
    fast = max(swarm.nodes[f"n{number}"].done_at or 0.0 for number in range(4))
    assert fast < 5 * ONCE_S
    assert uploads(swarm) <= 2.2


def test_who_comes_when_others_are_done_gets_it_from_them_or_from_the_seed() -> None:
    swarm = crowd(4)
    late = swarm.asker("late", UPLINK, at=2 * ONCE_S)
    swarm.run()
    assert late.done_at is not None
    assert late.done_at < 4 * ONCE_S


def test_the_seed_may_die_as_soon_as_every_chunk_is_out() -> None:
    swarm = crowd(8)
    swarm.kill(SEED_NODE, at=1.3 * ONCE_S)
    assert swarm.run() < 4 * ONCE_S
