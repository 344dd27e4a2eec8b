from __future__ import annotations

import time

import pytest

from dht import ordering, rules
from dht.records.views import View, Views
from protocol.identifiers import record_key
from protocol.records import ServiceRecord, Signed
from tests.dht_mesh import identity, service

ROOT = record_key("category:/")
NOW = time.time()


def test_a_view_shows_the_newest_of_each_slot_and_the_same_list_while_nothing_changes() -> None:
    old, new, other = service("a", seq=1), service("a", seq=2, content="v2"), service("b", seq=1)
    view = View(ROOT, [new, other])
    shown = view.visible(NOW)
    assert {s.envelope for s in shown} == {new.envelope, other.envelope}
    view.add(old)
    view.add(new)
    assert view.visible(NOW) is shown
    view.add(service("b", seq=2, withdrawn=True))
    assert [s.envelope for s in view.visible(NOW)] == [new.envelope]


def test_what_lost_its_slot_is_remembered_as_seen() -> None:
    old, new = service("a", seq=1), service("a", seq=2, content="v2")
    view = View(ROOT, [old, new])
    place = ordering.position(old.envelope)
    assert view.place(place[: ordering.SHORT_BYTES]) == place
    assert view.ordered.envelopes == [new.envelope]


def test_expired_records_leave_the_view_and_its_fingerprint() -> None:
    brief, lasting = service("a", expiry=NOW + 5), service("b", expiry=NOW + 500)
    view = View(ROOT, [brief, lasting])
    assert len(view.visible(NOW)) == 2
    assert [s.envelope for s in view.visible(NOW + 6)] == [lasting.envelope]
    assert view.ordered.fingerprint == ordering.OrderedSet([lasting.envelope]).fingerprint


def test_a_record_that_does_not_name_the_key_hides_its_older_version_only() -> None:
    key = record_key("category:/image")
    old, moved = service("a", seq=1, category="/image"), service("a", seq=2, category="/video")
    assert View(key, [moved]).visible(NOW) == []
    assert View(key, [old, moved]).visible(NOW) == []
    back = service("a", seq=3, category="/image/x")
    assert [s.envelope for s in View(key, [old, moved, back]).visible(NOW)] == [back.envelope]


def test_small_sets_are_not_kept_and_the_least_used_is_forgotten(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr("dht.records.views.WORTH_KEEPING", 2)
    monkeypatch.setattr("dht.records.views.MAX_VIEWED", 4)
    views = Views()
    views.keep(b"small", View(ROOT, [service("a")]))
    assert views.get(b"small") is None
    for key in (b"1", b"2"):
        views.keep(key, View(ROOT, [service("a"), service("b")]))
    assert views.get(b"1") is not None
    views.keep(b"3", View(ROOT, [service("c"), service("d")]))
    assert views.get(b"2") is None
    assert views.get(b"1") is not None


def places(*records: Signed) -> ordering.Places:
    return ordering.Places(ordering.position(signed.envelope) for signed in records)


def test_what_had_no_seat_is_asked_for_again_when_it_would_have_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "MAX_PER_KEY", 4)
    real = [service(f"r{n}", key=identity(n)) for n in range(3)]
    invented = [service(f"z{n}", key=identity(100 + n)) for n in range(12)]
    view = View(ROOT)
    liars = {b"liar%d" % n: places(*invented[n::3]) for n in range(3)}
    view.tell({b"honest": places(*real), **liars})
    view.add(*real, *invented)
    shown = view.visible(NOW)
    assert len(shown) == 4
    left_out = [signed for signed in real if signed not in shown]
    assert len(left_out) == 2, "each of four holders has one seat"
    assert all(view.place(ordering.position(s.envelope)[:6]) for s in left_out), "it was seen: nobody is asked for it"

    view.tell({node: places() for node in liars})
    assert not any(view.place(ordering.position(s.envelope)[:6]) for s in left_out)
    assert view.held[b"honest"].positions == places(*(s for s in real if s in shown)).positions
    view.tell({b"honest": places(*real)})
    view.add(*left_out)
    assert {s.envelope for s in real} <= {s.envelope for s in view.visible(NOW)}


def test_of_one_signer_the_newest_stay_and_the_others_are_not_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(rules.MAX_PER_OWNER, ServiceRecord, 20)
    many = [service(f"s{n}", seq=n) for n in range(25)]
    view = View(ROOT)
    view.tell({b"holder": places(*many)})
    view.add(*many)
    assert [s.envelope for s in view.visible(NOW)] == [s.envelope for s in reversed(many[5:])]
    view.tell({b"holder": places(*many), b"other": places(*many)})
    assert all(view.place(ordering.position(s.envelope)[:6]) for s in many)
