from __future__ import annotations

import pytest

from dht import seats as module
from dht.seats import OWN, REFUSED, Leaver, Occupancy, Seat, Tally, seat

FREE = Seat(granted=True)


@pytest.fixture(autouse=True)
def tight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_PER_KEY", 8)
    monkeypatch.setattr(module, "MAX_PER_VIA", 4)


def seat_for(there: Occupancy, owner: bytes, via: bytes) -> Seat:
    return seat(there, owner=owner, via=via, per_owner=3)


def test_a_tally_knows_who_has_the_most() -> None:
    tally = Tally()
    assert tally.largest == (b"", 0)
    for name in (b"a", b"b", b"b"):
        tally.add(name)
    assert (tally.largest, tally.total, tally[b"a"]) == ((b"b", 2), 3, 1)
    tally.add(b"b", -1)
    tally.add(b"b", -1)
    assert (tally.largest, tally[b"b"]) == ((b"a", 1), 0)
    tally.add(b"a", -1)
    assert (tally.largest, tally.total) == ((b"", 0), 0)


def test_there_is_room_until_a_bound_is_reached() -> None:
    assert seat_for(Occupancy(), b"a", b"m") == FREE
    assert seat_for(Occupancy([(b"a", b"m", 2), (b"b", b"n", 4)]), b"a", b"m") == FREE


def test_of_a_signer_at_its_bound_the_lowest_ranked_goes_whoever_brought_it() -> None:
    assert seat_for(Occupancy([(b"a", b"m", 3)]), b"a", b"n") == Seat(True, Leaver(b"a", None), by_rank=True)


def test_in_a_full_pool_the_signer_with_the_most_makes_room_for_one_with_less() -> None:
    there = Occupancy([(b"a", b"m", 3), (b"b", b"m", 1)])
    assert seat_for(there, b"c", b"m") == Seat(True, Leaver(b"a", b"m"))
    assert seat_for(there, b"c", b"n") == FREE, "another member has a pool of its own"


def test_throwaway_keys_gain_nothing_once_a_members_pool_is_full() -> None:
    there = Occupancy((bytes([i]), b"m", 1) for i in range(4))
    assert seat_for(there, b"new", b"m") == REFUSED


def test_at_a_full_key_the_member_with_the_most_makes_room() -> None:
    there = Occupancy([(b"a", b"m", 2), (b"b", b"m", 2), (b"c", b"n", 3), (b"d", b"o", 1)])
    given = seat_for(there, b"e", b"p")
    assert given.leaver is not None
    assert given.leaver.via == b"m"
    assert seat_for(there, b"e", b"n") == Seat(True, Leaver(b"c", b"n")), "it has as much: one of its own goes"
    assert seat_for(Occupancy((bytes([i]), bytes([i]), 1) for i in range(8)), b"e", b"p") == REFUSED, "first come stays"


def test_what_is_published_here_is_in_no_pool_and_never_goes() -> None:
    assert seat_for(Occupancy([(b"a", OWN, 2), (b"b", OWN, 2), (b"c", OWN, 2)]), b"d", OWN) == FREE
    full = Occupancy([(b"a", OWN, 3), (b"b", OWN, 3), (b"c", b"m", 2)])
    assert seat_for(full, b"d", OWN) == Seat(True, Leaver(b"c", b"m"))
    assert seat_for(full, b"d", b"n") == Seat(True, Leaver(b"c", b"m"))
    only_own = Occupancy((bytes([i]), OWN, 2) for i in range(4))
    assert seat_for(only_own, b"x", OWN) == FREE
    assert seat_for(only_own, b"x", b"n") == REFUSED
