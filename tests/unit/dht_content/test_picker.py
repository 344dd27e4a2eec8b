"""The rules of a transfer as tables: no loop, no clock."""

from __future__ import annotations

import pytest

from dht.swarm.neighbours import PATIENCE_S, bringer
from dht.swarm.picker import Ask, Cancel, Limits, Picker
from dht.swarm.pipelining import Pipelining

KB = 1 << 10
ONE_EACH = Limits(Pipelining(depth=1, max_pieces=1))


def picker_of(count: int, limits: Limits | None = None, length: int = 256 * KB) -> Picker:
    return Picker(dict.fromkeys(range(count), length), list(range(count)), limits)


def asks(picker: Picker, now: float = 0.0) -> list[Ask]:
    return [e for e in picker.decide(now) if isinstance(e, Ask)]


def deliver(picker: Picker, ask: Ask, now: float = 0.0) -> None:
    for piece in ask.pieces:
        picker.heard(ask.request, 256 * KB, now)
        picker.delivered(ask.request, piece, now)
    picker.finished(ask.request, now)


def test_nothing_wanted_is_done_at_once() -> None:
    assert picker_of(0).done


def test_work_is_spread_over_providers() -> None:
    picker = picker_of(40)
    picker.provide("a", None)
    picker.provide("b", None)
    first = asks(picker)
    assert sorted(ask.provider for ask in first) == ["a", "b"], "one each, until they have shown how fast they are"
    for ask in first:
        deliver(picker, ask, 1.0)
    second = asks(picker, 1.0)
    assert sorted(ask.provider for ask in second) == ["a", "a", "b", "b"]
    pieces = [piece for ask in first + second for piece in ask.pieces]
    assert len(pieces) == len(set(pieces))


def test_a_provider_has_depth_requests_at_once() -> None:
    picker = picker_of(100)
    picker.provide("a", None)
    first = asks(picker)
    assert len(first) == 2
    assert asks(picker) == []
    deliver(picker, first[0], 0.1)
    assert len(asks(picker, 0.1)) == 1


def test_a_faster_provider_is_asked_for_more_at_a_time() -> None:
    picker = picker_of(400, Limits(Pipelining(depth=1)))
    picker.provide("fast", None)
    picker.provide("slow", None)
    first = {ask.provider: ask for ask in asks(picker)}
    deliver(picker, first["fast"], 0.05)
    deliver(picker, first["slow"], 4.0)
    second = {ask.provider: len(ask.pieces) for ask in asks(picker, 4.0)}
    assert second["fast"] > second["slow"]


def test_fast_providers_have_one_request_each_unless_alone() -> None:
    picker = picker_of(400)
    picker.provide("a", None)
    picker.provide("b", None)
    for ask in asks(picker):
        deliver(picker, ask, 0.01)
    assert sorted(ask.provider for ask in asks(picker, 0.01)) == ["a", "b"]
    picker.drop("b", "lied")
    assert [ask.provider for ask in asks(picker, 0.01)] == ["a"], "alone, it has two"


def test_requests_at_the_end_get_smaller_but_not_tiny() -> None:
    picker = picker_of(40, Limits(Pipelining(depth=1)))
    picker.provide("a", None)
    sizes = []
    while not picker.done:
        (ask,) = asks(picker, 0.04 * len(sizes))
        sizes.append(len(ask.pieces))
        deliver(picker, ask, 0.04 * len(sizes))
    assert sizes == [4, 18, 9, 5, 4]


def test_rarest_first() -> None:
    picker = picker_of(4, ONE_EACH)
    picker.provide("partial", {0, 1, 3})
    picker.provide("partial2", {0, 1, 3})
    picker.provide("whole", None)
    picked = {ask.provider: ask.pieces for ask in asks(picker)}
    assert picked["whole"] == (2,), "what only the whole one has goes before the common ones"


def test_a_partial_holder_is_asked_only_for_what_it_has() -> None:
    picker = picker_of(10, Limits(Pipelining(depth=1)))
    picker.provide("partial", {7})
    assert [a.pieces for a in asks(picker)] == [(7,)]


def test_a_partial_holder_is_asked_for_more_when_it_has_more() -> None:
    picker = picker_of(3, ONE_EACH)
    picker.provide("partial", {0})
    deliver(picker, asks(picker)[0])
    assert picker.hopeless
    picker.provide("partial", {0, 1, 2})
    assert not picker.hopeless
    assert asks(picker)[0].pieces == (1,)


def test_what_a_provider_lacks_is_asked_elsewhere() -> None:
    picker = picker_of(1)
    picker.provide("a", None)
    (ask,) = asks(picker)
    picker.lacking(ask.request, 0)
    picker.finished(ask.request, 0.0)
    assert asks(picker) == []
    assert picker.hopeless
    picker.provide("b", None)
    assert [a.provider for a in asks(picker)] == ["b"]


def test_a_failing_provider_is_dropped_when_another_is_left_and_its_pieces_move() -> None:
    picker = picker_of(1)
    picker.provide("a", None)
    picker.provide("b", {5})
    now = 0.0
    for _ in range(3):
        (ask,) = asks(picker, now)
        picker.failed(ask.request, now, "connection refused")
        assert asks(picker, now) == []
        now += 5.0
    assert picker.dropped == {"a": "connection refused"}
    assert asks(picker, now) == []
    picker.provide("b", None)
    assert [a.provider for a in asks(picker, now)] == ["b"]


def test_the_only_provider_is_tried_again_and_again_but_without_hope() -> None:
    picker = picker_of(1)
    picker.provide("a", None)
    now = 0.0
    for strike in range(10):
        assert picker.hopeless == (strike >= 3)
        (ask,) = asks(picker, now)
        picker.failed(ask.request, now, "no route")
        now += 1.0
    assert picker.dropped == {}
    assert picker.troubles == {"a": "no route"}
    (ask,) = asks(picker, now)
    deliver(picker, ask, now)
    assert not picker.hopeless


def test_requests_that_fail_together_are_one_failure() -> None:
    picker = picker_of(100, Limits(Pipelining(depth=3)))
    picker.provide("a", None)
    picker.provide("b", None)
    for ask in asks(picker):
        if ask.provider == "a":
            picker.failed(ask.request, 0.0, "reset")
    assert picker.dropped == {}


def test_a_delivery_clears_the_strikes() -> None:
    picker = picker_of(10, ONE_EACH)
    picker.provide("a", None)
    now = 0.0
    for _ in range(5):
        (ask,) = asks(picker, now)
        picker.failed(ask.request, now, "reset")
        now += 5.0
        (ask,) = asks(picker, now)
        deliver(picker, ask, now)
    assert picker.dropped == {}


def test_a_busy_provider_rests_and_is_never_dropped() -> None:
    picker = picker_of(1)
    picker.provide("a", None)
    now = 0.0
    for _ in range(20):
        (ask,) = asks(picker, now)
        picker.busy(ask.request, now, retry_after=0.5)
        assert asks(picker, now + 0.4) == []
        now += 0.5
    assert picker.dropped == {}
    assert not picker.hopeless


def test_a_provider_busy_with_another_request_of_ours_just_takes_fewer() -> None:
    picker = picker_of(100)
    picker.provide("a", None)
    first, second = asks(picker)
    picker.busy(second.request, 0.0, retry_after=0.5)
    assert asks(picker) == []
    deliver(picker, first, 0.1)
    assert len(asks(picker, 0.1)) == 1, "it need not rest, and is asked for one thing at a time"


def test_an_absurd_retry_after_is_cut() -> None:
    picker = picker_of(1)
    picker.provide("a", None)
    (ask,) = asks(picker)
    picker.busy(ask.request, 0.0, retry_after=1e9)
    assert len(asks(picker, 2.0)) == 1


def test_a_liar_is_dropped_with_all_its_requests() -> None:
    picker = picker_of(100)
    picker.provide("liar", None)
    first, second = asks(picker)
    picker.lied(first.request, "not the digest's bytes")
    assert picker.dropped == {"liar": "not the digest's bytes"}
    assert Cancel(second.request) in picker.decide(0.0)
    picker.provide("liar", None)
    assert asks(picker) == []
    assert picker.hopeless


def test_a_silent_request_is_given_up_and_strikes() -> None:
    picker = picker_of(1)
    picker.provide("silent", None)
    (ask,) = asks(picker)
    picker.heard(ask.request, 100, 4.0)
    assert picker.decide(8.0) == []
    effects = picker.decide(9.1)
    assert effects[0] == Cancel(ask.request)


def test_a_trickle_is_dropped_when_another_could_do_it_but_not_when_it_is_all_there_is() -> None:
    picker = picker_of(1)
    picker.provide("trickle", None)
    (ask,) = asks(picker)
    for second in range(1, 12):
        picker.heard(ask.request, 100, float(second))
    assert picker.decide(11.0) == []
    picker.provide("other", None)
    effects = picker.decide(11.0)
    assert picker.dropped == {"trickle": "slow"}
    assert [e.provider for e in effects if isinstance(e, Ask)] == ["other"]


def test_end_game_the_first_delivery_wins_and_the_other_request_is_given_up() -> None:
    picker = picker_of(1)
    picker.provide("a", None)
    picker.provide("b", None)
    (first,) = asks(picker)
    assert asks(picker, 0.1) == [], "not before endgame_s"
    (second,) = asks(picker, 0.6)
    assert (second.pieces, second.provider != first.provider) == (first.pieces, True)
    assert picker.delivered(second.request, 0, 0.7)
    assert Cancel(first.request) in picker.decide(0.7)
    assert not picker.delivered(first.request, 0, 0.8), "kept once only"
    assert picker.done


def test_no_end_game_against_a_request_that_goes_well() -> None:
    picker = picker_of(1)
    picker.provide("a", None)
    picker.provide("b", None)
    (first,) = asks(picker)
    picker.heard(first.request, 100 * KB, 0.6)
    assert [ask.pieces for ask in asks(picker, 0.6)] == [(0,)], "another 0.9 s is late"
    picker = picker_of(1)
    picker.provide("a", None)
    picker.provide("b", None)
    (first,) = asks(picker)
    picker.heard(first.request, 200 * KB, 0.6)
    assert asks(picker, 0.6) == [], "another 0.2 s is not"


def test_a_provider_that_breaks_off_gives_back_only_what_it_did_not_deliver() -> None:
    picker = picker_of(40, Limits(Pipelining(depth=1)))
    picker.provide("a", None)
    (ask,) = asks(picker)
    assert len(ask.pieces) > 1
    picker.delivered(ask.request, ask.pieces[0], 0.1)
    picker.finished(ask.request, 0.2)
    assert not picker.wants(ask.pieces[0])
    assert all(picker.wants(p) for p in ask.pieces[1:])
    assert not picker.hopeless


def test_a_fast_provider_is_asked_in_the_order_of_the_blob_a_slow_one_in_the_order_handed_in() -> None:
    backwards = list(reversed(range(100)))
    for seconds, begins in ((0.001, [0, 1, 2]), (1.0, [98, 97, 96])):
        picker = Picker(dict.fromkeys(range(100), 256 * KB), backwards, Limits(Pipelining(depth=1, first_batch=KB)))
        picker.provide("a", None)
        (first,) = asks(picker)
        assert first.pieces == (99,)
        deliver(picker, first, seconds)
        (second,) = asks(picker, seconds)
        assert list(second.pieces[:3]) == begins[: len(second.pieces)]
        while not picker.done:
            deliver(picker, second, seconds)
            second = next(iter(asks(picker, seconds)), second)


def test_a_near_provider_is_asked_and_nobody_afar_for_what_it_gives() -> None:
    picker = picker_of(40)
    picker.provide("afar", None)
    picker.provide("near", set(range(30)), near=True)
    first = asks(picker)
    asked = {name: {p for ask in first if ask.provider == name for p in ask.pieces} for name in ("near", "afar")}
    assert asked["near"]
    assert asked["near"] < set(range(30))
    assert asked["afar"]
    assert asked["afar"] <= set(range(30, 40))


def test_with_the_whole_on_the_lan_nothing_crosses_the_uplink() -> None:
    picker = picker_of(40)
    picker.provide("afar", None)
    picker.provide("near", None, near=True)
    now, providers = 0.0, set()
    while not picker.done:
        for ask in asks(picker, now):
            providers.add(ask.provider)
            deliver(picker, ask, now + 0.01)
        now += 0.01
    assert providers == {"near"}


def test_a_near_provider_that_fails_is_slow_or_lacks_a_piece_holds_nobody_off() -> None:
    def far_asked_after(what: str) -> bool:
        picker = picker_of(400, Limits(Pipelining(depth=1)))
        picker.provide("afar", None)
        picker.provide("near", None, near=True)
        (ask,) = asks(picker)
        assert ask.provider == "near"
        if what == "fails":
            picker.failed(ask.request, 0.1, "broke off")
        elif what == "is busy":
            picker.busy(ask.request, 0.1, 1.0)
        elif what == "lacks":
            picker.lacking(ask.request, ask.pieces[0])
        else:
            deliver(picker, ask, 60.0 if what == "is slow" else 0.1)
        return any(a.provider == "afar" for a in asks(picker, 0.2))

    assert {what: far_asked_after(what) for what in ("fails", "is busy", "lacks", "is slow", "does well")} == {
        "fails": True,
        "is busy": True,
        "lacks": True,
        "is slow": True,
        "does well": False,
    }


def afar_asked(picker: Picker, now: float) -> bool:
    return any(ask.provider == "afar" for ask in asks(picker, now))


def test_while_a_near_provider_is_being_met_nobody_afar_is_asked() -> None:
    picker = picker_of(40)
    picker.provide("afar", None)
    picker.expect("near", 0.0)
    assert asks(picker, 0.0) == []
    assert asks(picker, 0.4) == []
    picker.provide("near", None, near=True)
    assert {ask.provider for ask in asks(picker, 0.41)} == {"near"}
    assert picker.unmet(9.0) == []


def test_a_near_provider_is_waited_for_once_and_not_for_long() -> None:
    picker = picker_of(40)
    picker.provide("afar", None)
    picker.expect("near", 0.0)
    assert not afar_asked(picker, 0.49)
    picker.expect("near", 0.49)
    assert afar_asked(picker, 0.5)
    assert picker.unmet(0.5) == ["near"]


def test_a_near_provider_that_cannot_be_met_is_not_waited_for() -> None:
    picker = picker_of(40)
    picker.provide("afar", None)
    picker.expect("near", 0.0)
    picker.missed("near")
    picker.expect("near", 0.1)
    assert afar_asked(picker, 0.1)
    assert picker.unmet(9.0) == []


def test_without_a_near_provider_nobody_waits() -> None:
    picker = picker_of(40)
    picker.provide("afar", None)
    assert afar_asked(picker, 0.0)


@pytest.mark.parametrize("trickles", [False, True])
def test_a_near_provider_that_sends_too_little_for_a_second_holds_nobody_off(trickles: bool) -> None:
    picker = picker_of(400)
    picker.provide("afar", None)
    picker.provide("near", None, near=True)
    first = asks(picker)
    assert {ask.provider for ask in first} == {"near"}
    if trickles:
        for ask in first:
            picker.heard(ask.request, KB, 0.9)
    assert not afar_asked(picker, 1.0), "not even in the end game"
    assert afar_asked(picker, 1.1)


def test_a_near_provider_that_hesitates_once_still_spares_others() -> None:
    picker = picker_of(400, Limits(Pipelining(depth=1)))
    picker.provide("afar", None)
    picker.provide("near", None, near=True)
    (ask,) = asks(picker)
    deliver(picker, ask, 0.9)
    assert not afar_asked(picker, 0.95)


def crowd_with_a_neighbour() -> tuple[Picker, set[int]]:
    """`me` and `near` both fetch what `afar` has; and what falls to the neighbour."""
    picker = Picker(dict.fromkeys(range(40), 256 * KB), list(range(40)), me="me")
    picker.provide("afar", None)
    picker.provide("near", set(), near=True, fetches=True)
    return picker, {piece for piece in range(40) if bringer(piece, ["me", "near"]) == "near"}


def all_asked_of_afar(picker: Picker, now: float) -> set[int]:
    """Everything that is asked from afar until nothing more is."""
    asked: set[int] = set()
    while of_afar := [ask for ask in asks(picker, now) if ask.provider == "afar"]:
        for ask in of_afar:
            asked |= set(ask.pieces)
            deliver(picker, ask, now)
    return asked


def test_what_a_neighbour_is_to_bring_is_not_asked_from_afar_unless_it_takes_too_long() -> None:
    picker, of_neighbour = crowd_with_a_neighbour()
    assert all_asked_of_afar(picker, 0.1) == set(range(40)) - of_neighbour
    assert list(picker.awaited) == ["near"]
    assert not picker.hopeless
    assert all_asked_of_afar(picker, 0.1 + PATIENCE_S) == of_neighbour
    assert picker.done


def test_what_a_neighbour_has_brought_is_had_from_it() -> None:
    picker, of_neighbour = crowd_with_a_neighbour()
    all_asked_of_afar(picker, 0.1)
    picker.provide("near", of_neighbour, near=True)
    providers = set()
    while not picker.done:
        for ask in asks(picker, 1.0):
            providers.add(ask.provider)
            deliver(picker, ask, 1.0)
    assert providers == {"near"}
    assert list(picker.awaited) == []


def test_a_neighbour_that_fails_brings_nothing() -> None:
    picker, of_neighbour = crowd_with_a_neighbour()
    all_asked_of_afar(picker, 0.1)
    some = min(of_neighbour)
    picker.provide("near", {some}, near=True)
    (ask,) = [ask for ask in asks(picker, 0.2) if ask.provider == "near"]
    picker.failed(ask.request, 0.2, "no route")
    assert all_asked_of_afar(picker, 0.2) == of_neighbour


def test_a_neighbour_that_only_keeps_a_part_is_not_waited_for() -> None:
    picker = picker_of(40)
    picker.provide("afar", None)
    picker.provide("near", {0}, near=True)
    assert all_asked_of_afar(picker, 0.1) == set(range(1, 40))
