"""Who brings what over the uplink: all come to the same answer, and nobody waits long."""

from __future__ import annotations

from collections import Counter

from dht.swarm.neighbours import MAX_PATIENCE_S, PATIENCE_S, Shares, bringer

PIECES = range(1000)


def test_all_members_agree_in_whatever_order_they_met() -> None:
    assert all(bringer(piece, ["a", "b", "c"]) == bringer(piece, ["c", "a", "b"]) for piece in PIECES)


def test_shares_are_about_equal() -> None:
    shares = Counter(bringer(piece, ["a", "b", "c", "d"]) for piece in PIECES)
    assert all(200 < share < 300 for share in shares.values())


def test_who_comes_takes_from_all_and_moves_nothing_between_the_others() -> None:
    moved = {(bringer(p, "abc"), bringer(p, "abcd")) for p in PIECES if bringer(p, "abc") != bringer(p, "abcd")}
    assert moved == {("a", "d"), ("b", "d"), ("c", "d")}


def shares_of(neighbour: str = "b") -> tuple[Shares, list[int]]:
    """Of `a`, which heard of `neighbour` at 0; and the neighbour's share, in no order."""
    shares = Shares("a")
    shares.heard(neighbour, [], 0.0)
    return shares, [piece for piece in PIECES if bringer(piece, ["a", neighbour]) == neighbour]


def test_a_neighbours_share_is_left_to_it_and_the_rest_is_not() -> None:
    shares, of_b = shares_of()
    assert shares.left_to(["b"], PIECES, 1.0) == {"b": set(of_b)}
    assert shares.left_to(["b"], [p for p in PIECES if p not in of_b], 1.0) == {}


def test_nothing_is_left_to_who_does_not_do_well_or_was_never_heard_of() -> None:
    shares, _ = shares_of()
    assert shares.left_to([], PIECES, 1.0) == {}
    assert shares.left_to(["c"], PIECES, 1.0) == {}


def test_one_that_brings_nothing_of_its_share_is_not_waited_for() -> None:
    shares, of_b = shares_of()
    assert shares.left_to(["b"], of_b, PATIENCE_S - 0.1)
    shares.heard("b", [p for p in PIECES if p not in of_b], PATIENCE_S - 0.1)
    assert not shares.left_to(["b"], of_b, PATIENCE_S), "what it got here, or took of another's share, is no reason"
    shares.heard("b", of_b[:1], 3.0)
    assert shares.left_to(["b"], of_b, 3.0)


def test_one_that_is_slow_but_steady_is_waited_for_longer_within_a_bound() -> None:
    shares, of_b = shares_of()
    shares.heard("b", of_b[:1], 3.0)
    assert shares.left_to(["b"], of_b, 8.9)
    assert not shares.left_to(["b"], of_b, 9.0)
    shares.heard("b", of_b[1:2], 100.0)
    assert not shares.left_to(["b"], of_b, 100.0 + MAX_PATIENCE_S)


def test_who_has_nothing_else_to_do_waits_no_longer_than_it_was_busy() -> None:
    shares, of_b = shares_of()
    for second in range(1, 6):
        shares.heard("b", [of_b[second]], float(second))
        assert shares.left_to(["b"], PIECES, float(second))
    for second in range(6, 11):
        shares.heard("b", [of_b[second]], float(second))
        assert shares.left_to(["b"], of_b, float(second)), "idle from 6 on, after 6 busy seconds"
    shares.heard("b", of_b[20:21], 12.0)
    assert not shares.left_to(["b"], of_b, 12.0), "it trickles"
