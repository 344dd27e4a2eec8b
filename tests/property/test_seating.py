"""Where there is too little room, whoever lies about whatever: what honest holders hold keeps its share of seats."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from unittest.mock import patch

from hypothesis import given
from hypothesis import strategies as st

from dht import ordering, rules
from dht.records.views import View
from dht.seats import by_turns, seated
from protocol.identifiers import record_key
from protocol.records import ServiceRecord, Signed
from tests.dht_mesh import identity, service

KEY = record_key("category:/")
NOW = 1_800_000_000.0
MS = int(NOW * 1000)
ROOM, PER_OWNER = 12, 3
HONEST = [service(f"h{n}", seq=MS, expiry=NOW + 60, key=identity(n)) for n in range(9)]
"""Of signers of their own, and older than all that is invented."""
INVENTED = [
    service(f"z{n}", seq=MS + 1 + n, expiry=NOW + 600, key=identity(100 + n // per_signer))
    for per_signer, numbers in ((1, range(30)), (5, range(30, 40)))
    for n in numbers
]
ALL = [*HONEST, *INVENTED]
PLACES = {signed.envelope: ordering.position(signed.envelope) for signed in ALL}

queues = st.lists(st.lists(st.integers(0, 30), unique=True, max_size=20), max_size=6)
lies = st.lists(st.sets(st.sampled_from(range(len(ALL)))), max_size=4)


@given(queues, st.integers(0, 25))
def test_every_queue_has_its_first_seated_and_no_seat_stays_empty(given_queues: list[list[int]], room: int) -> None:
    found = seated(given_queues, room)
    everybody = set().union(*given_queues)
    assert len(found) == len(set(found)) == min(room, len(everybody))
    for queue in given_queues:
        assert set(queue[: room // len(given_queues)]) <= set(found)


@given(st.lists(st.lists(st.integers(), max_size=5), max_size=5))
def test_by_turns_is_how_queues_without_common_members_are_seated(numbers: list[list[int]]) -> None:
    given_queues = [[(at, number) for number in dict.fromkeys(queue)] for at, queue in enumerate(numbers)]
    assert by_turns(given_queues) == seated(given_queues, sum(map(len, given_queues)))


@given(st.lists(st.integers(0, 30), unique=True), st.integers(1, 5), queues, st.integers(0, 40))
def test_queues_that_agree_have_the_turns_of_all_of_them(
    queue: list[int], count: int, others: list[list[int]], room: int
) -> None:
    found = seated([queue] * count + others, room)
    assert set(queue[: count * (room // (count + len(others)))]) <= set(found)


@contextmanager
def little_room() -> Iterator[None]:
    with patch.object(rules, "MAX_PER_KEY", ROOM), patch.dict(rules.MAX_PER_OWNER, {ServiceRecord: PER_OWNER}):
        yield


def places(records: Sequence[Signed]) -> ordering.Places:
    return ordering.Places(PLACES[signed.envelope] for signed in records)


def read(view: View, held: Sequence[Sequence[Signed]], chance: random.Random) -> set[bytes]:
    """What is shown after two readings in which holders 0, 1, ... were found to hold these. What the view has not seen
    comes in batches, in any order."""
    for _ in range(2):
        known, holding = dict(view.held), {b"%d" % number: places(records) for number, records in enumerate(held)}
        lacking = {
            signed.envelope: signed
            for node, records in zip(holding, held, strict=True)
            if node not in known or known[node].fingerprint != holding[node].fingerprint
            for signed in records
            if view.place(PLACES[signed.envelope][: ordering.SHORT_BYTES]) is None
        }
        came = sorted(lacking.values(), key=lambda _: chance.random())
        view.tell(holding)
        while came:
            size = chance.randint(1, 15)
            view.add(*came[:size])
            del came[:size]
        view.visible(NOW)
    return {signed.envelope for signed in view.visible(NOW)}


@given(st.sets(st.sampled_from(range(len(HONEST)))), st.integers(1, 3), lies, st.randoms(use_true_random=False))
def test_what_honest_holders_hold_within_their_shares_is_shown_whatever_the_others_say(
    chosen: set[int], honest: int, lying: list[set[int]], chance: random.Random
) -> None:
    share = ROOM // (honest + len(lying) + 1)  # the reader itself is a holder, of nothing
    kept = [HONEST[n] for n in sorted(chosen)][: honest * share]
    held = [kept] * honest + [[ALL[n] for n in lie] for lie in lying]
    with little_room():
        shown = read(View(KEY, lots=b"secret"), held, chance)
        assert {signed.envelope for signed in kept} <= shown
        assert len(shown) <= ROOM


@given(lies, lies, st.randoms(use_true_random=False))
def test_what_was_told_before_takes_nothing_from_what_is_told_now(
    before: list[set[int]], now: list[set[int]], chance: random.Random
) -> None:
    """The same liars with other lies, or fewer of them; then all are gone. What was left out comes back each time."""
    with little_room():
        view = View(KEY, lots=b"secret")
        read(view, [HONEST, *([ALL[n] for n in lie] for lie in before)], chance)
        gone: list[list[Signed]] = [[]] * 4
        honest = HONEST[: ROOM // (max(len(now), len(before)) + 2)]
        for kept, lying in ((honest, [*([ALL[n] for n in lie] for lie in now), *gone][: len(gone)]), (HONEST, gone)):
            shown = read(view, [kept, *lying], chance)
            assert {signed.envelope for signed in kept} <= shown


@given(lies, st.randoms(use_true_random=False))
def test_where_there_is_room_the_view_is_the_merge_of_all(lying: list[set[int]], chance: random.Random) -> None:
    held = [[ALL[n] for n in lie] for lie in lying]
    with patch.dict(rules.MAX_PER_OWNER, {ServiceRecord: PER_OWNER}):
        shown = read(View(KEY), held, chance)
        assert shown == {signed.envelope for signed in rules.merge(*held)}
