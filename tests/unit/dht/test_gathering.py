"""Who is found to hold what: what each told itself, and no more, unless the fingerprint says so."""

from __future__ import annotations

import msgspec
import pytest
from kademlia.node import Node

from dht import ordering, rules
from dht.overlay.gathering import Gathering, Nothing
from dht.overlay.messages import Page, Parts
from dht.overlay.reading import Answers, still_to_read

SET = [b"record %d" % number for number in range(300)]
NODES = [Node(bytes([number]) * 20, "10.0.0.1", 1) for number in range(4)]


def places(envelopes: list[bytes]) -> ordering.Places:
    return ordering.Places(map(ordering.position, envelopes))


class Known(Nothing):
    """What was read before: a set, of which the first node held all."""

    def __init__(self, envelopes: list[bytes]) -> None:
        self.ordered = ordering.OrderedSet(envelopes)
        self.held = {NODES[0].id: places(envelopes)}

    def place(self, short: bytes) -> bytes | None:  # type: ignore[override]
        return next((p for p in self.ordered.positions if p.startswith(short)), None)


def page(node: Node, held: list[bytes], *, shown: int) -> Page:
    ordered = ordering.OrderedSet(held)
    following = ordered.positions[shown - 1] if shown < len(held) else None
    return Page(
        bytes(8), node.id, None, (), tuple(ordered.envelopes[:shown]), following, ordered.fingerprint, len(held), 0
    )


def parts(node: Node, held: list[bytes]) -> Parts:
    return Parts(bytes(8), node.id, None, (), *places(held).summary(*ordering.EVERYWHERE), len(held), 0)


def test_what_was_known_before_is_not_brought_again_but_counts_for_who_has_it() -> None:
    gathering = Gathering(Known(SET[:10]))
    taken = gathering.take(SET[8:12])
    assert set(gathering.envelopes.values()) == set(SET[10:12])
    assert taken == [ordering.position(envelope) for envelope in SET[8:12]]
    assert [gathering.place(place[: ordering.SHORT_BYTES]) for place in taken] == taken
    assert gathering.place(b"no one") is None


def test_who_answers_with_the_fingerprint_of_a_known_set_has_that_set() -> None:
    gathering = Gathering(Known(SET))
    answers: Answers = {node.id: parts(node, SET) for node in NODES}
    assert still_to_read(NODES, answers, gathering) == []
    assert gathering.count_read(node.id for node in NODES) == 4
    assert gathering.held[NODES[3].id].positions == places(SET).positions


def test_sets_that_differ_are_all_read_and_those_that_most_hold_first() -> None:
    gathering = Gathering(Known(SET))
    held = [SET[:100], SET[:200], SET[:200], SET[:50]]
    answers: Answers = {node.id: parts(node, its) for node, its in zip(NODES, held, strict=True)}
    groups = still_to_read(NODES, answers, gathering)
    assert groups == [[NODES[1], NODES[2]], [NODES[0]], [NODES[3]]]
    assert gathering.count_read(node.id for node in NODES) == 0


def test_a_page_counts_for_its_sender_alone_whatever_fingerprint_it_claims() -> None:
    gathering = Gathering(Nothing())
    real, liar = page(NODES[0], SET, shown=3), page(NODES[1], [b"invented %d" % n for n in range(9)], shown=2)
    liar = msgspec.structs.replace(liar, fingerprint=real.fingerprint)
    whole = page(NODES[2], SET[:2], shown=2)
    answers: Answers = {answer.sender: answer for answer in (real, liar, whole)}
    assert still_to_read(NODES[:3], answers, gathering) == [[NODES[0], NODES[1]]]
    assert len(gathering.held[NODES[0].id].positions) == 3
    assert not set(gathering.held[NODES[1].id].positions) & set(places(SET).positions)
    assert gathering.count_read(node.id for node in NODES) == 1


def test_what_comes_in_part_is_added_to_what_its_holder_had_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    gathering = Gathering(Known(SET[:10]))
    gathering.add(NODES[0].id, set(gathering.take(SET[10:12])))
    assert gathering.held[NODES[0].id].positions == places(SET[:12]).positions
    monkeypatch.setattr(rules, "MAX_PER_KEY", 6)
    gathering.add(NODES[0].id, set(gathering.take(SET[12:14])))
    assert gathering.held[NODES[0].id].positions == places(SET[12:14]).positions


def test_a_set_is_compared_with_the_most_similar_one() -> None:
    gathering = Gathering(Known(SET[:150]))
    like = places(SET[:290])
    gathering.settle([NODES[1]], like)
    gathering.settle([NODES[2]], places(SET[200:]))
    assert gathering.most_similar_to(parts(NODES[3], SET).parts) is like
    assert not gathering.lacks_most(10_000)
    assert Gathering(Nothing()).lacks_most(100)
