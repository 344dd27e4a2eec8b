"""The view of other controllers: what counts as newer, as alive, and who is asked."""

from __future__ import annotations

import hashlib

from region_controller.hierarchy import candidates
from region_controller.relatives import FRESH_S, GONE_S, MISSED_FOR_S, RETRY_MOST_S, RelativesView, Target
from region_controller.summaries import MAX_SUMMARIES, Exchange, ExchangeAnswer, Heard, Load, Summary, mark_of

DIGEST = "sha256:" + "ab" * 32


def node(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:40]


def a_view(region: str, name: str = "") -> RelativesView:
    return RelativesView(region, node(name or region), 1)


def a_summary(
    region: str, *, name: str = "", incarnation: int = 1, version: int = 1, free: int = 0, leaving: bool = False
) -> Summary:
    load = Load(agents=1, memory_total=1000, memory_free=free, largest_free=free)
    return Summary(region, node(name or region), ("10.0.0.1:7401",), incarnation, version, load, leaving=leaving)


def seen(view: RelativesView, now: float) -> dict[str, int]:
    return {r.region: r.load.memory_free for r in view.relatives(now)}


def test_the_newest_version_counts_and_an_old_life_does_not_return() -> None:
    view = a_view("eu/a")
    view.told(a_summary("eu/b", version=7, free=70), 0.0)
    view.told(a_summary("eu/b", version=6, free=60), 1.0)
    assert seen(view, 1.0) == {"eu/b": 70}
    view.told(a_summary("eu/b", incarnation=2, version=1, free=10), 2.0)
    view.told(a_summary("eu/b", version=8, free=80), 3.0)
    assert seen(view, 3.0) == {"eu/b": 10}
    assert view.relatives(3.0)[0].age_s == 1.0, "what an earlier life said is no sign of life"


def test_fresh_stale_gone_and_no_return_by_hearsay() -> None:
    view, target = a_view("eu/a"), Target(node("eu"), "eu", ("10.0.0.1:7401",), wants_all=True)
    summary = a_summary("eu/b")
    view.told(summary, 0.0)
    assert view.freshness(summary.node, FRESH_S) == "fresh"
    assert view.freshness(summary.node, FRESH_S + 0.1) == "stale"
    assert seen(view, GONE_S + 0.1) == {}
    assert view.sweep(MISSED_FOR_S) == []
    assert view.sweep(MISSED_FOR_S + 0.1) == [summary.node]
    relayed = ExchangeAnswer(a_summary("eu"), (Heard(summary, int(GONE_S * 1000) + 1),))
    view.answered(relayed, target, asked_at=9.0, now=9.1)
    assert seen(view, 9.1) == {"eu": 0}


def test_a_goodbye_is_believed_at_once_and_passed_on() -> None:
    view = a_view("eu")
    view.told(a_summary("eu/b"), 0.0)
    view.told(a_summary("eu/b", version=2, leaving=True), 0.1)
    assert seen(view, 0.1) == {}
    answer = view.answer(Exchange(a_summary("eu/a"), ()), a_summary("eu"), 0.2)
    assert [h.summary.leaving for h in answer.news] == [True]


def test_the_uplink_is_the_nearest_living_ancestor_and_a_gap_is_bridged() -> None:
    view = a_view("eu/de/ka")
    for region in ("eu", "eu/fr", "eu/de/da"):
        view.told(a_summary(region), 0.0)
    assert [t.region for t in view.uplinks(0.0)] == ["eu"]
    view.told(a_summary("eu/de", name="one"), 0.0)
    view.told(a_summary("eu/de", name="two"), 0.0)
    assert [t.region for t in view.uplinks(0.0)] == ["eu/de", "eu/de"]
    view.failed(node("one"), 0.0)
    view.failed(node("two"), 0.0)
    assert [t.region for t in view.uplinks(0.5)] == ["eu"]
    assert [t.region for t in view.uplinks(1.5)] == ["eu/de", "eu/de"], "it is tried again"


def test_however_many_relatives_there_are_the_regions_above_are_not_forgotten() -> None:
    nephews = [a_summary(f"eu/a/b/{number}") for number in range(MAX_SUMMARIES + 20)]
    for parent_comes_first in (True, False):
        view = a_view("eu/a/x")
        for summary in [a_summary("eu/a"), *nephews] if parent_comes_first else [*nephews, a_summary("eu/a")]:
            view.told(summary, 0.0)
        view.told(a_summary("eu/a/y"), 0.0)
        assert [t.region for t in view.uplinks(0.0)] == ["eu/a"]
        assert "eu/a/y" in seen(view, 0.0), "who is nearer takes the place of who is farther"
        assert len(seen(view, 0.0)) == MAX_SUMMARIES


def test_when_there_is_no_room_who_lives_and_is_led_by_nobody_counts_more() -> None:
    view = a_view("eu")
    for region in ["eu/a", "eu/b", *(f"eu/a/{number}" for number in range(MAX_SUMMARIES))]:
        view.told(a_summary(region), 0.0)
    assert len(seen(view, 0.0)) == MAX_SUMMARIES
    for orphan in range(100):
        view.told(a_summary(f"eu/c/{orphan}"), 1.0)
        view.met(f"eu/d/{orphan}", node(f"eu/d/{orphan}"), ("10.0.0.1:7401",), 1.0)
    known = seen(view, 1.0)
    assert {f"eu/c/{orphan}" for orphan in range(100)} <= known.keys(), "nobody else tells of orphans"
    assert {"eu/a", "eu/b"} <= known.keys()
    assert len(known) == MAX_SUMMARIES, "a hint takes nobody's place who lives"
    view.told(a_summary("eu/e"), GONE_S + 2.0)
    assert "eu/e" in seen(view, GONE_S + 2.0), "those that are gone make room first"


def test_in_a_large_mesh_who_has_a_living_controller_above_is_heard_of_through_that_one() -> None:
    def told_of(cousins: int) -> set[str]:
        view, asker = a_view("eu"), a_summary("eu/a/x")
        cousins_of = [f"eu/{parent}/{n}" for n in range(cousins) for parent in "bc"]
        for region in ["eu/a", "eu/a/x", "eu/a/y", "eu/b", "us", "us/ny", *cousins_of]:
            view.told(a_summary(region), 0.0)
        answer = view.answer(Exchange(asker, ()), a_summary("eu"), 0.0)
        return {heard.summary.region for heard in answer.news}

    assert told_of(1) == {"eu/a", "eu/a/y", "eu/b", "us", "us/ny", "eu/b/0", "eu/c/0"}
    orphans = {f"eu/c/{n}" for n in range(40)}
    assert told_of(40) == {"eu/a", "eu/a/y", "eu/b", "us", *orphans}, "eu/c has no controller to tell of them"


def test_orphans_agree_on_a_stand_in() -> None:
    regions = ["eu/a", "eu/b", "eu/c/x"]
    chosen = {}
    for region in regions:
        view = a_view(region)
        for other in regions:
            view.told(a_summary(other), 0.0)
        chosen[region] = [t.region for t in view.uplinks(0.0)]
    assert chosen == {"eu/a": [], "eu/b": ["eu/a"], "eu/c/x": ["eu/a"]}


def test_all_regions_below_are_summed_up_once() -> None:
    view = a_view("eu")
    for region, free in (("eu/a", 100), ("eu/b/x", 200), ("us", 999)):
        view.told(a_summary(region, free=free), 0.0)
    own = a_view("eu/a").own(Load(), ("10.0.0.1:1",), 0.0)
    assert (view.below(0.0).memory_free, view.below(0.0).largest_free) == (300, 200)
    below = Load(agents=3, memory_free=50, largest_free=40)
    view.told(Summary("eu/a", own.node, ("10.0.0.1:1",), 1, 9, Load(agents=1, memory_free=1), below), 0.0)
    view.told(a_summary("eu/a/deep", free=7), 0.0)
    assert view.below(0.0).memory_free == 251, "what eu/a sums up is not counted again"


def test_what_two_controllers_of_one_region_see_below_them_is_counted_once() -> None:
    view, below = a_view("eu"), Load(agents=3, memory_free=50, largest_free=40)
    for name in ("one", "two"):
        own = Load(agents=1, memory_free=1)
        view.told(Summary("eu/a", node(name), ("10.0.0.1:1",), 1, 1, own, below), 0.0)
    assert (view.below(0.0).memory_free, view.below(0.0).agents) == (52, 5)


def test_after_a_failure_the_next_address_has_its_turn_and_keeps_it_while_it_answers() -> None:
    view = a_view("eu/a")
    view.met("eu", node("eu"), ("192.0.2.1:1", "192.0.2.2:1"), 0.0)

    def first(now: float) -> str:
        target = view.probe(now)
        assert target is not None
        return target.addresses[0]

    assert first(0.0) == "192.0.2.1:1"
    view.failed(node("eu"), 0.0)
    assert first(2.0) == "192.0.2.2:1"
    view.reached(node("eu"), 0.01)
    assert first(3.0) == "192.0.2.2:1"


def test_only_what_is_new_is_told_in_full() -> None:
    view = a_view("eu")
    view.told(a_summary("eu/a"), 0.0)
    view.told(a_summary("eu/b"), 0.0)
    asker = a_view("eu/a")
    target = Target(node("eu"), "eu", ("10.0.0.1:7401",), wants_all=True)
    me = a_summary("eu/a")
    first = view.answer(asker.question(me, target, 1.0), a_summary("eu"), 1.0)
    assert ([h.summary.region for h in first.news], first.same) == (["eu/b"], ())
    asker.answered(first, target, asked_at=1.0, now=1.2)
    second = view.answer(asker.question(me, target, 2.0), a_summary("eu"), 2.0)
    assert (second.news, [s.node for s in second.same]) == ((), [node("eu/b")])
    asker.answered(second, target, asked_at=2.0, now=2.1)
    (sibling,) = (r for r in asker.relatives(2.1) if r.region == "eu/b")
    assert 2.1 <= sibling.age_s < 2.11, "hearsay of hearsay does not make it younger"


def test_a_dead_relative_is_left_out_and_a_full_one_comes_last_until_it_says_something_new() -> None:
    view = a_view("eu/a")
    for region in ("eu/b", "eu/c", "eu/d"):
        view.told(a_summary(region, free=500), 0.0)

    def asked(now: float, digest: str = DIGEST) -> list[str]:
        hops = candidates("eu/a", view.relatives(now), me="", visited=(), mem=100, digest=digest)
        return [hop.region for hop in hops]

    view.failed(node("eu/b"), 0.0)
    view.refused(node("eu/c"), DIGEST)
    assert asked(0.1) == ["eu/d", "eu/c"]
    assert asked(0.1, "sha256:" + "00" * 32) == ["eu/c", "eu/d"]
    view.told(a_summary("eu/c", version=2, free=500), 0.5)
    view.reached(node("eu/b"), 0.02)
    assert asked(0.6) == ["eu/b", "eu/c", "eu/d"]
    for _ in range(20):
        view.failed(node("eu/b"), 0.7)
    view.told(a_summary("eu/b"), 8.7)
    assert "eu/b" not in asked(0.7 + RETRY_MOST_S), "what others say of it does not bring us there"
    view.reached(node("eu/b"), 0.02)
    assert "eu/b" in asked(0.7 + RETRY_MOST_S)


def test_warm_services_are_known_by_a_mark() -> None:
    view = a_view("eu/a")
    summary = Summary("eu/b", node("eu/b"), ("10.0.0.1:1",), 1, 1, Load(warm=(mark_of(DIGEST),)))
    view.told(summary, 0.0)
    (relative,) = view.relatives(0.0)
    assert (relative.is_warm(DIGEST), relative.is_warm("sha256:" + "00" * 32)) == (True, False)


def test_who_finds_its_former_self_newer_outbids_it() -> None:
    view = a_view("eu/a")
    view.told(a_summary("eu/a", incarnation=50, version=3), 0.0)
    assert view.own(Load(), ("10.0.0.1:1",), 0.0).incarnation == 51


def test_others_are_probed_in_turn() -> None:
    view = a_view("eu/b")
    for region in ("eu", "eu/a", "eu/c"):
        view.told(a_summary(region), 0.0)
    probed = [target.region for now in (0.0, 1.0, 2.0, 3.0) if (target := view.probe(now))]
    assert sorted(probed) == ["eu/a", "eu/a", "eu/c", "eu/c"]
    assert probed[0] != probed[1]
