"""A piece is free, asked for or here, and never two of them."""

from __future__ import annotations

from dht.swarm.outstanding import Outstanding, Request


def outstanding(count: int = 4) -> Outstanding:
    return Outstanding(dict.fromkeys(range(count), 100), list(reversed(range(count))))


def test_what_is_asked_for_is_not_free_and_what_is_left_open_is_again() -> None:
    pieces = outstanding()
    request = pieces.ask("a", [3, 1], 0.0)
    assert list(pieces.free) == [2, 0]
    pieces.settle(request, 3)
    pieces.end(request)
    assert list(pieces.free) == [2, 0, 3, 1]
    assert pieces.requests == {}


def test_a_piece_asked_of_two_is_free_only_when_both_gave_it_up() -> None:
    pieces = outstanding()
    first, second = pieces.ask("a", [0], 0.0), pieces.ask("b", [0], 0.0)
    assert list(pieces.asked_once()) == []
    pieces.end(first)
    assert 0 not in pieces.free
    assert [(piece, r.provider) for piece, r in pieces.asked_once()] == [(0, "b")]
    pieces.end(second)
    assert 0 in pieces.free


def test_a_delivery_names_the_requests_that_have_nothing_left_to_do() -> None:
    pieces = outstanding()
    first, second = pieces.ask("a", [0, 1], 0.0), pieces.ask("b", [0], 0.0)
    assert pieces.deliver(0) == [second]
    assert pieces.requests[first].open == {1}
    assert pieces.wanted == {1, 2, 3}
    pieces.end(second)
    assert 0 not in pieces.free, "what is here is not wanted again"


def test_free_pieces_in_the_order_of_the_blob() -> None:
    pieces = outstanding()
    pieces.deliver(0)
    pieces.ask("a", [2], 0.0)
    assert list(pieces.free_in_order()) == [1, 3]


def test_a_request_is_late_when_it_is_silent_or_slow_for_long_enough() -> None:
    request = Request("a", {0}, 1000, started=0.0, heard=0.0)
    assert not request.is_late(1.0, rate=10.0, late_s=1.0)
    assert request.is_late(1.1, rate=10.0, late_s=1.0), "silent"
    request.heard, request.received = 1.9, 10
    assert request.is_late(2.0, rate=10.0, late_s=1.0), "slow"
    request.received = 20
    assert not request.is_late(2.0, rate=10.0, late_s=1.0)


def test_the_time_left_follows_from_its_own_speed_then_from_what_the_provider_showed_before() -> None:
    request = Request("a", {0}, 1000, started=0.0, heard=0.0)
    assert request.time_left(0.0, rate=100.0) == 10.0
    assert request.time_left(3.0, rate=0.0) == 3.0, "nothing is known: as late as it is silent"
    request.heard, request.received = 4.0, 800
    assert request.time_left(4.0, rate=1.0) == 1.0
