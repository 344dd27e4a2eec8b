from __future__ import annotations

import time

from dht import ordering
from dht.records.views import View, Views
from protocol.identifiers import record_key
from tests.dht_mesh import service

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
