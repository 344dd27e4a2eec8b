"""Whose turn it is: places and turns are shared among clients, and times come from the starts before."""

from __future__ import annotations

from region_controller.turns import Ticket, Turns


def in_line(turns: Turns, *clients: str) -> list[Ticket]:
    tickets = [Ticket(client, arrived=float(number)) for number, client in enumerate(clients)]
    for ticket in tickets:
        turns.arrive(ticket)
    return tickets


def called(turns: Turns, slots: int, now: float = 0.0) -> list[str]:
    return [ticket.client for ticket in turns.call(slots, now)]


def test_so_many_go_at_once_and_the_rest_as_others_end() -> None:
    turns = Turns(places=9)
    first, *_ = in_line(turns, "ann", "bob", "cat")
    assert called(turns, 2) == ["ann", "bob"]
    assert (turns.under_way, turns.waiting) == (2, 1)
    assert called(turns, 2) == []
    turns.leave(first, 4.0)
    assert called(turns, 2) == ["cat"]


def test_who_has_the_fewest_under_way_is_next_however_many_places_others_took_first() -> None:
    turns = Turns(places=9)
    in_line(turns, "ann", "ann", "ann", "bob", "cat")
    assert called(turns, 1) == ["ann"]
    assert called(turns, 2) == ["bob"]
    assert called(turns, 4) == ["cat", "ann"]


def test_a_full_line_is_shared_too() -> None:
    turns = Turns(places=3)
    ann = in_line(turns, "ann", "ann", "ann")
    turns.arrive(bob := Ticket("bob", 3.0))
    assert turns.crowded_out() is ann[2], "the newest of who has the most"
    turns.arrive(Ticket("bob", 4.0))
    assert turns.crowded_out() is not None
    turns.arrive(late := Ticket("ann", 5.0))
    assert turns.crowded_out() is late
    assert turns.crowded_out() is None
    assert bob.called_at is None


def test_who_waits_for_room_lets_others_pass_and_is_called_one_at_a_time() -> None:
    turns, room = Turns(places=9), [False]
    for number in range(2):
        turns.arrive(Ticket("big", float(number), fits=lambda: room[0]))
    turns.arrive(Ticket("small", 2.0))
    assert called(turns, 8) == ["small"]
    room[0] = True
    assert called(turns, 8) == ["big"], "what the first takes is not known yet"
    assert called(turns, 8) == ["big"]


def test_the_wait_is_told_by_how_long_starts_take() -> None:
    turns = Turns(places=9)
    first, second, third = in_line(turns, "ann", "bob", "cat")
    for ticket in turns.call(2, now=10.0):
        ticket.began = True
    assert turns.wait_s(turns.ahead(third), 2) is None, "none has ended yet"
    turns.leave(first, 20.0)
    assert turns.took_s == 10.0
    assert turns.wait_s(turns.ahead(third), 2) == 5.0, "one of two ends every 5 s"
    turns.leave(second, 15.0)
    assert turns.took_s == 9.0
    turns.leave(third, 99.0)
    assert turns.took_s == 9.0, "who leaves the line tells nothing"
    turns.arrive(unused := Ticket("dan", 4.0))
    turns.call(2, now=100.0)
    turns.leave(unused, 100.0)
    assert turns.took_s == 9.0, "nor does a turn that was not used"
    assert (turns.waiting, turns.under_way) == (0, 0)


def test_who_comes_back_has_its_place_again() -> None:
    turns = Turns(places=9)
    in_line(turns, "ann", "bob")
    turns.arrive(Ticket("cat", arrived=-1.0))
    assert called(turns, 1) == ["cat"]
