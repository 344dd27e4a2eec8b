"""Who fetches, and what a seed gives to a crowd."""

from __future__ import annotations

from dht.crowd import AGAIN_S, BELONGS_S, MAX_AGAIN_S, MAX_CROWDS, MAX_MEMBERS, PRESENT_S, Crowd, Crowds, Member
from protocol.identifiers import digest_of

CHUNK = digest_of(b"chunk")


def member(name: str, now: float = 0.0, held: frozenset[int] = frozenset()) -> Member:
    return Member(name, b"offer", held, now)


def crowd_of(*names: str, now: float = 0.0) -> Crowd:
    crowd = Crowd()
    for name in names:
        crowd.told(member(name, now))
    return crowd


def test_a_lone_node_is_given_everything_as_often_as_it_asks() -> None:
    crowd = crowd_of("a")
    for _ in range(3):
        assert crowd.gives("a", CHUNK, 0.0)
        crowd.gave("a", CHUNK, 0.0)


def test_a_chunk_goes_to_one_of_a_crowd_and_the_others_are_sent_elsewhere() -> None:
    crowd = crowd_of("a", "b", "c")
    crowd.gave("a", CHUNK, 0.0)
    assert not crowd.gives("b", CHUNK, AGAIN_S / 2)
    assert crowd.gives("a", CHUNK, AGAIN_S / 2), "what broke off may be asked for again"
    assert crowd.gives("b", digest_of(b"another"), AGAIN_S / 2)
    assert crowd.given([CHUNK, digest_of(b"another")], "b", AGAIN_S / 2) == [True, False]


def test_the_pause_doubles_with_every_copy_up_to_a_bound() -> None:
    crowd = crowd_of("a", "b")
    now = 0.0
    for expected in (AGAIN_S, 2 * AGAIN_S, 4 * AGAIN_S, MAX_AGAIN_S, MAX_AGAIN_S):
        crowd.gave("a", CHUNK, now)
        crowd.told(member("a", now + expected))
        assert not crowd.gives("b", CHUNK, now + expected - 0.01)
        assert crowd.gives("b", CHUNK, now + expected)
        now += expected


def test_when_the_others_have_gone_nobody_is_sent_to_them() -> None:
    crowd = crowd_of("a", "b")
    crowd.gave("a", CHUNK, PRESENT_S)
    crowd.told(member("b", PRESENT_S + 0.1))
    assert [m.node for m in crowd.others("b", PRESENT_S)] == ["a"]
    assert crowd.others("b", PRESENT_S + 0.1) == []
    assert crowd.gives("b", CHUNK, PRESENT_S + 0.1)


def test_the_last_to_tell_is_named_first_and_a_crowd_is_bounded() -> None:
    crowd = Crowd()
    for number in range(MAX_MEMBERS + 5):
        crowd.told(member(str(number)))
    crowd.told(member("10"))
    others = [m.node for m in crowd.others("7", 0.0)]
    assert len(others) == MAX_MEMBERS - 1
    assert others[:2] == ["10", str(MAX_MEMBERS + 4)]


def test_dispersed_crowds_are_forgotten_and_their_number_is_bounded() -> None:
    crowds = Crowds()
    crowds.of("old", 0.0).told(member("a", 0.0))
    crowds.of("new", PRESENT_S + 1).told(member("a", PRESENT_S + 1))
    assert crowds.known("old") is None
    assert crowds.known("new") is crowds.of("new", PRESENT_S + 1)
    for number in range(MAX_CROWDS + 1):
        crowds.of(str(number), 10.0).told(member("a", 10.0))
    assert crowds.known("new") is None
    assert crowds.known("0") is None
    assert crowds.known(str(MAX_CROWDS)) is not None


def test_who_has_just_fetched_belongs_to_the_crowd_for_a_while() -> None:
    crowds = Crowds()
    assert not crowds.belongs("blob", 0.0)
    crowds.joined("blob", 0.0)
    assert crowds.belongs("blob", BELONGS_S)
    assert not crowds.belongs("blob", BELONGS_S + 0.1)
