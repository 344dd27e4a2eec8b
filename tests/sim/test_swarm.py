"""Flash crowds in virtual time: the seed sends little more than once, and completion hardly grows with N."""

from __future__ import annotations

from collections.abc import Sequence
from math import log2

import pytest

from dht.swarm.meeting import MEET_S
from dht.swarm.neighbours import PATIENCE_S
from dht.swarm.patience import STUCK_S
from dht.swarm.picker import Limits
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
    return swarm.nodes[SEED_NODE].sent_bytes / LENGTH / swarm.pieces


@pytest.mark.parametrize("size", [1, 2, 4, 8, 16])
def test_a_crowd_costs_the_seed_about_one_copy_and_everybody_about_the_same_time(size: int) -> None:
    swarm = crowd(size)
    assert swarm.run() < 1.9 * ONCE_S
    assert uploads(swarm) <= 1.2


@pytest.mark.parametrize(("mbit", "sizes"), [(1, (4, 16)), (5, (4, 16)), (20, (4, 16, 64)), (100, (4, 16))])
def test_however_slow_the_uplinks_are_the_time_grows_with_the_logarithm(mbit: float, sizes: Sequence[int]) -> None:
    uplink, pieces = mbit * 1e6 / 8, 40
    once_s = pieces * LENGTH / uplink
    for size in sizes:
        swarm = Swarm(pieces=pieces, length=LENGTH)
        swarm.holder(SEED_NODE, uplink)
        for number in range(size):
            swarm.asker(f"n{number}", uplink)
        assert swarm.run() < once_s * (1 + 0.35 * log2(size)) + 2 * MEET_S, size
        assert uploads(swarm) <= 1.5, size


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


def test_unequal_uplinks() -> None:
    swarm = Swarm(pieces=PIECES, length=LENGTH)
    swarm.holder(SEED_NODE, UPLINK / 5)
    for number in range(16):
        swarm.asker(f"n{number}", UPLINK / (1, 5, 20, 50)[number % 4])
    assert swarm.run() < 4 * 5 * ONCE_S
    assert uploads(swarm) <= 2


def test_lost_meetings_cost_little() -> None:
    swarm = crowd(16, meetings_lost=0.02)
    assert swarm.run() < 2.2 * ONCE_S
    assert uploads(swarm) <= 1.5


def test_on_slow_uplinks_too_what_the_dead_took_goes_out_again() -> None:
    swarm = Swarm(pieces=40, length=LENGTH)
    swarm.holder(SEED_NODE, UPLINK / 20)
    for number in range(16):
        swarm.asker(f"n{number}", UPLINK / 20)
    once = 40 * LENGTH / (UPLINK / 20)
    for number in range(0, 16, 2):
        swarm.kill(f"n{number}", at=0.5 * once)
    assert swarm.run() < 4 * once
    assert uploads(swarm) <= 2.5


def one_with_a_neighbour(near_rate: float, *, have: int | None = None, dies_at: float | None = None) -> Swarm:
    """An asker, a holder on its own network, and the seed behind the uplink."""
    swarm = Swarm(pieces=PIECES, length=LENGTH)
    swarm.holder(SEED_NODE, UPLINK)
    swarm.holder("near", near_rate, have)
    if dies_at is not None:
        swarm.kill("near", at=dies_at)
    swarm.asker("n0", UPLINK, near=frozenset({"near"}))
    return swarm


def test_what_a_neighbour_has_does_not_cross_the_uplink() -> None:
    for rate in (10 * UPLINK, UPLINK):
        swarm = one_with_a_neighbour(rate)
        assert swarm.run() < 1.1 * PIECES * LENGTH / rate + 0.3
        assert uploads(swarm) == 0, rate


def test_of_what_a_neighbour_has_in_part_only_the_rest_crosses_the_uplink() -> None:
    swarm = one_with_a_neighbour(10 * UPLINK, have=PIECES // 2)
    assert swarm.run() < 0.6 * ONCE_S + 0.2
    assert uploads(swarm) == 0.5


def test_a_neighbour_that_dies_hands_over_what_it_has_not_sent() -> None:
    swarm = one_with_a_neighbour(UPLINK, dies_at=0.5 * ONCE_S)
    assert swarm.run() < 1.3 * ONCE_S
    assert 0.4 < uploads(swarm) < 0.7


def test_a_neighbour_that_is_dead_already_costs_the_moment_it_is_waited_for() -> None:
    swarm = one_with_a_neighbour(UPLINK, dies_at=0.0)
    assert swarm.run() < 1.1 * ONCE_S + Limits().near_wait_s + 0.2


def test_a_neighbour_far_slower_than_the_uplink_holds_nobody_up() -> None:
    swarm = one_with_a_neighbour(UPLINK / 50)
    assert swarm.run() < 1.3 * ONCE_S + Limits().near_late_s + 1
    assert uploads(swarm) > 0.8


@pytest.mark.parametrize("mbit", [5, 100])
def test_a_crowd_of_sites_with_several_nodes_takes_each_chunk_over_the_uplink_about_once(mbit: float) -> None:
    uplink = mbit * 1e6 / 8
    swarm = Swarm(pieces=PIECES, length=LENGTH)
    swarm.holder(SEED_NODE, uplink)
    sites = [frozenset({f"n{site}a", f"n{site}b"}) for site in range(4)]
    for site in sites:
        for name in sorted(site):
            swarm.asker(name, uplink, near=site - {name})
    assert swarm.run() < 1.9 * PIECES * LENGTH / uplink
    assert uploads(swarm) <= 1.2
    for site in sites:
        from_afar = sum(swarm.nodes[name].from_afar for name in site)
        assert from_afar < 1.25 * PIECES * LENGTH, "both without each other: 2"


def test_a_neighbour_that_dies_with_its_share_unbrought_costs_a_moment() -> None:
    swarm = Swarm(pieces=PIECES, length=LENGTH)
    swarm.holder(SEED_NODE, UPLINK)
    for name, other in (("n0", "n1"), ("n1", "n0")):
        swarm.asker(name, UPLINK, near=frozenset({other}))
    swarm.kill("n1", at=0.3 * ONCE_S)
    assert swarm.run() < 1.3 * ONCE_S + 2 * PATIENCE_S


def test_an_overloaded_seed_is_waited_for_by_all() -> None:
    """One answer at a time, over half a minute each: who waits hears nothing but that it is busy, and a promise."""
    swarm = Swarm(pieces=6, length=4 << 20, slots=1)
    swarm.holder(SEED_NODE, UPLINK / 100)
    for number in range(3):
        swarm.asker(f"n{number}", UPLINK)
    swarm.run(until_s=1000.0)
    assert max(node.waited_s for node in swarm.nodes.values()) > STUCK_S


def test_a_seed_that_is_always_busy_is_given_up() -> None:
    swarm = crowd(2, slots=0)
    with pytest.raises(AssertionError, match="n0: 0/60"):
        swarm.run()
    assert swarm.now < STUCK_S + 1
