"""Which connections may stay."""

from __future__ import annotations

from node.connections import Connections, allowed


def test_of_one_address_the_longest_idle_makes_room() -> None:
    room: Connections[int] = Connections(total=100, of_one_address=3)
    assert [room.arrived(n, "a") for n in range(3)] == [None] * 3
    room.working(0)
    room.working(1)
    room.waiting(0)
    assert room.arrived(3, "a") == 2, "0 was idle for a shorter time, 1 is at work"
    assert room.arrived(4, "a") == 0
    assert room.arrived(5, "b") is None, "another address has its own share"
    assert (len(room), room.of("a"), room.of("b"), room.made_room, room.refused) == (4, 3, 1, 2, 0)


def test_who_comes_is_refused_while_all_are_at_work() -> None:
    room: Connections[int] = Connections(total=100, of_one_address=2)
    for n in range(2):
        room.arrived(n, "a")
        room.working(n)
    assert room.arrived(2, "a") == 2
    assert (len(room), room.refused) == (2, 1)
    room.gone(2)
    room.gone(0)
    assert room.arrived(3, "a") is None


def test_a_full_house_takes_from_the_address_with_the_most() -> None:
    room: Connections[int] = Connections(total=10, of_one_address=8)
    for n in range(8):
        room.arrived(n, "greedy")
    room.arrived(100, "phone")
    room.arrived(101, "other phone")
    assert room.arrived(200, "third phone") == 0
    assert room.arrived(8, "greedy") == 1
    assert [room.of(a) for a in ("greedy", "phone", "other phone", "third phone")] == [7, 1, 1, 1]


def test_who_has_the_most_pushes_out_nobody_who_has_less() -> None:
    room: Connections[int] = Connections(total=4, of_one_address=4)
    room.arrived(100, "phone")
    for n in range(3):
        room.arrived(n, "greedy")
        room.working(n)
    assert room.arrived(3, "greedy") == 3
    assert room.arrived(101, "phone") == 100, "the only idle one"
    assert room.of("phone") == 1


def test_members_make_room_after_all_others() -> None:
    room: Connections[int] = Connections(total=3, of_one_address=3)
    for n in range(3):
        room.arrived(n, "router")
    room.working(0)
    room.member(0)
    room.waiting(0)
    assert [room.arrived(n, "router") for n in (3, 4, 5)] == [1, 2, 3]
    for n in (4, 5):
        room.working(n)
    assert room.arrived(6, "router") == 0


def test_what_is_gone_is_forgotten_whatever_comes_after() -> None:
    room: Connections[int] = Connections(total=2, of_one_address=2)
    room.arrived(0, "a")
    room.gone(0)
    for late in (room.gone, room.working, room.waiting, room.member):
        late(0)
    assert (len(room), room.of("a")) == (0, 0)


def test_a_listener_takes_a_quarter_of_the_files_at_most() -> None:
    assert [allowed(1024, files) for files in (65_536, 4096, 1024, 2, -1)] == [1024, 1024, 256, 1, 1024]
