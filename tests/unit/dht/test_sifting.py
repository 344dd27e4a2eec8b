from __future__ import annotations

import pytest

from dht import ordering, rules
from dht.records.sifting import ALONE, QUIET_S, Sieve

REAL = [b"record %d" % number for number in range(300)]
HOLDERS = [bytes([number]) * 20 for number in range(8)]


def invented(first: int, count: int) -> list[bytes]:
    return [b"invented %d" % number for number in range(first, first + count)]


def places(envelopes: list[bytes]) -> ordering.Places:
    return ordering.Places(map(ordering.position, envelopes))


def by_place(*sets: list[bytes]) -> dict[bytes, bytes]:
    return {ordering.position(envelope): envelope for its in sets for envelope in its}


def holding(*sets: list[bytes]) -> dict[bytes, ordering.Places]:
    equal = {id(its): places(its) for its in sets}
    return {node: equal[id(its)] for node, its in zip(HOLDERS, sets, strict=False)}


def test_what_a_third_of_the_holders_have_is_looked_at_however_much_it_is() -> None:
    much = invented(0, 3 * ALONE)
    for alike, looked_at in ((3, 3 * ALONE), (1, ALONE)):
        sifted = Sieve().sift(by_place(much), holding(*[much] * alike, *[[]] * (8 - alike)), 0.0)
        assert len(sifted.envelopes) == looked_at


def test_in_a_mesh_of_few_nodes_one_holder_is_enough() -> None:
    much = invented(0, 3 * ALONE)
    assert len(Sieve().sift(by_place(much), holding(much, []), 0.0).envelopes) == 3 * ALONE


def test_who_brings_much_alone_costs_so_much_in_a_while_and_nothing_of_others_is_left_out() -> None:
    sieve = Sieve()
    flood, alone = invented(0, 3 * ALONE), REAL[200:204]
    held = holding(flood, *[REAL[:200]] * 6, REAL[:204])
    new = by_place(flood, REAL[:204])
    sifted = sieve.sift(new, held, 0.0)
    assert len(sifted.envelopes) == ALONE + 204
    assert {*REAL[:200], *alone} <= set(sifted.envelopes)
    assert sifted.held[HOLDERS[0]].positions == places([*set(sifted.envelopes) & set(flood)]).positions
    assert sifted.held[HOLDERS[7]].positions == places(REAL[:204]).positions
    again = invented(4 * ALONE, ALONE)
    assert len(sieve.sift(by_place(again), holding(again, *[[]] * 7), 1.0).envelopes) < ALONE / 20
    later = sieve.sift(by_place(again), holding(again, *[[]] * 7), 2 * QUIET_S)
    assert len(later.envelopes) == ALONE


def test_who_brought_too_much_is_not_read_for_a_while() -> None:
    sieve = Sieve()
    flood = invented(0, ALONE + 1)
    assert sieve.unread(HOLDERS, 0.0) == []
    sieve.sift(by_place(flood), holding(flood, *[[]] * 7), 0.0)
    assert sieve.unread(HOLDERS, 1.0) == [HOLDERS[0]]
    assert sieve.unread(HOLDERS[1:], 1.0) == []
    assert sieve.unread(HOLDERS, QUIET_S + 1) == []


def test_however_many_bring_too_much_three_quarters_are_read() -> None:
    sieve = Sieve()
    floods = [invented(number * 10_000, ALONE + 1) for number in range(8)]
    for _ in range(2):  # the first time, there is no room for more
        sieve.sift(by_place(*floods), holding(*floods), 0.0)
    assert len(sieve.unread(HOLDERS, 1.0)) == 2
    assert sieve.unread(HOLDERS[:3], 1.0) == []


def test_who_brings_much_leaves_the_turns_of_others_to_them_and_the_rest_to_the_next_reading(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    new, held = by_place(REAL[10:]), holding(REAL, REAL[200:204], REAL[:12])
    everything = Sieve().sift(new, held, 0.0)
    assert set(everything.envelopes) == set(REAL[10:])
    assert everything.held is held
    monkeypatch.setattr(rules, "MAX_PER_KEY", 20)
    some = Sieve().sift(new, held, 0.0)
    assert len(set(some.envelopes)) == 20
    assert {*REAL[10:12], *REAL[200:204]} <= set(some.envelopes)
    assert some.held[HOLDERS[0]].positions == places([*REAL[:10], *some.envelopes]).positions
    assert some.held[HOLDERS[1]].positions == places(REAL[200:204]).positions


def test_nothing_new_costs_nothing_and_changes_nothing() -> None:
    held = holding(REAL, REAL)
    assert Sieve().sift({}, held, 0.0) == ([], held)
