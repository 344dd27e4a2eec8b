"""Who fetches, and what a seed gives to a crowd."""

from __future__ import annotations

from dht.swarm.crowd import (
    BELONGS_S,
    MAX_CROWDS,
    MAX_MEMBERS,
    MAX_STILL_S,
    MIN_STILL_S,
    PRESENT_S,
    Crowd,
    Crowds,
    Member,
)
from protocol.identifiers import digest_of
from protocol.manifest import Chunk, Manifest

CHUNKS = [digest_of(f"chunk {number}".encode()) for number in range(8)]
CHUNK, ANOTHER = CHUNKS[0], CHUNKS[1]


def blob(name: str) -> Manifest:
    return Manifest(digest_of(name.encode()), 8, tuple(Chunk(digest, 1) for digest in CHUNKS))


def member(name: str, now: float = 0.0, held: frozenset[int] = frozenset()) -> Member:
    return Member(name, b"offer", held, now)


def crowd_of(*names: str, now: float = 0.0) -> Crowd:
    crowd = Crowd(CHUNKS)
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
    assert not crowd.gives("b", CHUNK, 1.0)
    assert crowd.gives("a", CHUNK, 1.0), "what broke off may be asked for again"
    assert crowd.gives("b", ANOTHER, 1.0)
    assert crowd.given([CHUNK, ANOTHER], "b", 1.0) == [True, False]


def test_who_asks_belongs_to_the_crowd_before_it_told_anything() -> None:
    crowd = Crowd(CHUNKS)
    crowd.asked("a", 0.0)
    crowd.gave("a", CHUNK, 0.0)
    crowd.asked("b", 0.0)
    assert not crowd.gives("b", CHUNK, 0.0)
    crowd.told(member("b", 0.0, frozenset({3})))
    crowd.asked("b", 1.0)
    assert crowd.others("a", 1.0)[0].held == {3}, "asking takes back nothing that was told"


def getting_on(crowd: Crowd, *names: str, chunk_s: float, until: float) -> None:
    """Each gets one chunk in `chunk_s`, and tells so, until it has all but the first."""
    held = 0
    while (now := (held + 1) * chunk_s) <= until and held < len(CHUNKS) - 1:
        held += 1
        for name in names:
            crowd.told(member(name, now, frozenset(range(1, held + 1))))


def test_a_chunk_whose_taker_gets_nothing_goes_out_again() -> None:
    crowd = crowd_of("dead", "b", "c")
    crowd.gave("dead", CHUNK, 0.0)
    getting_on(crowd, "b", "c", chunk_s=0.5, until=4.0)
    assert crowd.still_s() == MIN_STILL_S
    assert not crowd.gives("b", CHUNK, MIN_STILL_S - 0.1)
    assert crowd.gives("b", CHUNK, MIN_STILL_S)


def test_a_taker_that_gets_other_chunks_meanwhile_is_alive_but_not_for_ever() -> None:
    crowd = crowd_of("a", "b")
    crowd.gave("a", CHUNK, 0.0)
    getting_on(crowd, "a", "b", chunk_s=0.5, until=3.0)
    assert not crowd.gives("b", CHUNK, 3.0 + MIN_STILL_S - 0.1)
    assert crowd.gives("b", CHUNK, 3.0 + MIN_STILL_S)
    slow = crowd_of("a", "b")
    slow.gave("a", CHUNK, 0.0)
    getting_on(slow, "a", "b", chunk_s=10.0, until=70.0)
    still_s = slow.still_s()
    assert still_s == 20.0, "a quarter of the 80 s that 8 chunks take"
    assert slow.gives("b", CHUNK, 4 * still_s + still_s)


def test_a_chunk_that_spreads_is_left_to_spread() -> None:
    crowd = crowd_of("a", "b", "c", "d")
    crowd.gave("a", CHUNK, 0.0)
    for number, name in enumerate("abc"):
        crowd.told(member(name, 1.5 * (number + 1), frozenset({0, number + 1})))
    crowd.told(member("d", 4.5))
    still_s = crowd.still_s()
    assert not crowd.gives("d", CHUNK, 4.5 + still_s - 0.1)
    assert crowd.gives("d", CHUNK, 4.5 + still_s), "who cannot reach the others gets it in the end"


def test_the_pause_doubles_with_every_copy_up_to_a_bound() -> None:
    crowd = crowd_of("a", "b", "c")
    getting_on(crowd, "c", chunk_s=0.1, until=0.7)
    now = 1.0
    for copies in range(6):
        pause = min(MIN_STILL_S * 2**copies, MAX_STILL_S)
        crowd.gave("a", CHUNK, now)
        now += pause
        crowd.told(member("b", now - 0.01))
        assert not crowd.gives("c", CHUNK, now - 0.01)
        assert crowd.gives("c", CHUNK, now)


def test_when_the_others_have_gone_nobody_is_sent_to_them() -> None:
    crowd = crowd_of("a", "b")
    getting_on(crowd, "a", "b", chunk_s=0.1, until=0.7)
    crowd.gave("a", CHUNK, PRESENT_S)
    crowd.told(member("b", PRESENT_S + 0.7, frozenset(range(1, 8))))
    assert [m.node for m in crowd.others("b", PRESENT_S + 0.6)] == ["a"]
    assert crowd.others("b", PRESENT_S + 0.8) == []
    assert crowd.gives("b", CHUNK, PRESENT_S + 0.8)


def test_the_last_to_tell_is_named_first_and_a_crowd_is_bounded() -> None:
    crowd = Crowd(CHUNKS)
    for number in range(MAX_MEMBERS + 5):
        crowd.told(member(str(number)))
    crowd.told(member("10"))
    others = [m.node for m in crowd.others("7", 0.0)]
    assert len(others) == MAX_MEMBERS - 1
    assert others[:2] == ["10", str(MAX_MEMBERS + 4)]


def test_dispersed_crowds_are_forgotten_and_their_number_is_bounded() -> None:
    crowds = Crowds()
    old, new = blob("old"), blob("new")
    crowds.of(old, 0.0).told(member("a", 0.0))
    crowds.of(new, PRESENT_S + 1).told(member("a", PRESENT_S + 1))
    assert crowds.known(old.digest) is None
    assert crowds.known(new.digest) is crowds.of(new, PRESENT_S + 1)
    for number in range(MAX_CROWDS + 1):
        crowds.of(blob(str(number)), 10.0).told(member("a", 10.0))
    assert crowds.known(new.digest) is None
    assert crowds.known(blob("0").digest) is None
    assert crowds.known(blob(str(MAX_CROWDS)).digest) is not None


def test_who_has_just_fetched_belongs_to_the_crowd_for_a_while() -> None:
    crowds = Crowds()
    assert not crowds.belongs("blob", 0.0)
    crowds.joined("blob", 0.0)
    assert crowds.belongs("blob", BELONGS_S)
    assert not crowds.belongs("blob", BELONGS_S + 0.1)
