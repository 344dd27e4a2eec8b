from __future__ import annotations

import gc
import time
from collections.abc import Iterator, Sequence

import msgspec
import pytest

from dht.records import replica as module
from dht.records.replica import Replica
from dht.records.storage import Row, Storage, opened_storage
from dht.rules import Verdict
from dht.seats import OWN
from protocol.identifiers import record_key
from protocol.problems import DiskFull, InvalidRecord
from protocol.records import Signed, check_signature, verify
from tests.dht_mesh import service

KEY = record_key("id:wc01")
MS = int(time.time() * 1000)


@pytest.fixture
def replica() -> Iterator[Replica]:
    with opened_storage(None) as storage:
        yield Replica(storage, time.time)


def test_records_are_kept_superseded_or_refused_each_on_its_own(replica: Replica) -> None:
    new, old = service(seq=MS + 2000), service(seq=MS + 1000)
    forged = new.envelope[:-1] + bytes([new.envelope[-1] ^ 1])
    other = service("other", seq=MS + 1)
    offered = [new.envelope, old.envelope, forged, b"", other.envelope]
    assert replica.offer(KEY, offered) == [
        Verdict.KEPT,
        Verdict.SUPERSEDED,
        Verdict.REFUSED,
        Verdict.REFUSED,
        Verdict.REFUSED,
    ]
    assert replica.ordered(KEY).envelopes == [new.envelope]


def test_expired_records_are_refused_and_not_shown(replica: Replica) -> None:
    assert replica.offer(KEY, [service(expiry=time.time() - 1).envelope]) == [Verdict.REFUSED]


def test_what_a_clock_dated_two_days_ahead_gives_way_to_what_the_same_key_signs_now(replica: Replica) -> None:
    ahead = service(seq=MS + 2 * 86_400_000, content="dated ahead")
    replica.keep(KEY, ahead, ours=True, spread_at=0.0)
    now = service(seq=MS)
    assert not replica.outranks(KEY, now)
    assert replica.keep(KEY, now, ours=True, spread_at=0.0) == Verdict.KEPT
    assert replica.ordered(KEY).envelopes == [now.envelope]


def test_an_echo_from_a_peer_leaves_our_record_ours(replica: Replica) -> None:
    signed = service(seq=MS + 1000)
    replica.keep(KEY, signed, ours=True, spread_at=0.0)
    assert replica.offer(KEY, [signed.envelope]) == [Verdict.KEPT]
    (row,) = replica.storage.at(KEY)
    assert row.ours
    assert row.spread_at > 0


def test_what_somebody_else_signed_later_with_the_same_key_is_not_ours(replica: Replica) -> None:
    replica.keep(KEY, service(seq=MS + 1000), ours=True, spread_at=0.0)
    replica.offer(KEY, [service(seq=MS + 2000, content="v2").envelope])
    assert [row.ours for row in replica.storage.at(KEY)] == [False]


def test_one_signing_key_cannot_fill_the_node(replica: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_ROWS_PER_OWNER", 2)
    verdicts = [replica.offer(record_key(f"id:s{i}"), [service(f"s{i}").envelope])[0] for i in range(3)]
    assert verdicts == [Verdict.KEPT, Verdict.KEPT, Verdict.REFUSED]


def test_a_full_set_makes_room_for_newer_records_only(replica: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
    key = record_key("category:/")
    monkeypatch.setitem(module.rules.MAX_PER_OWNER, type(service().record), 2)
    seqs = {name: seq for seq, name in enumerate("abcd", start=MS)}
    records = {name: service(name, seq=seq).envelope for name, seq in seqs.items()}
    verdicts = [replica.offer(key, [records[name]])[0] for name in "bcad"]
    assert verdicts == [Verdict.KEPT, Verdict.KEPT, Verdict.REFUSED, Verdict.KEPT]
    assert set(replica.ordered(key).envelopes) == {records["c"], records["d"]}


def test_answers_follow_changes_and_expiry() -> None:
    now = [time.time()]
    with opened_storage(None) as storage:
        replica = Replica(storage, lambda: now[0])
        first, second = service(seq=MS + 1, expiry=now[0] + 50), service(seq=MS + 2, expiry=now[0] + 100)
        for signed in (first, second):
            replica.offer(KEY, [signed.envelope])
            assert replica.ordered(KEY).envelopes == [signed.envelope]
        now[0] += 101
        assert replica.ordered(KEY).envelopes == []


def spelled_longer(signed: Signed) -> bytes:
    """The same record under the same signature, its payload with a header of one size more: anybody can write that."""
    payload = msgspec.msgpack.decode(signed.envelope)[1]
    header, longer = (b"\xc4" + bytes([len(payload)]), b"\xc5" + len(payload).to_bytes(2, "big"))
    if len(payload) > 255:
        header, longer = longer, b"\xc6" + len(payload).to_bytes(4, "big")
    return signed.envelope.replace(header + payload, longer + payload, 1)


def test_another_spelling_of_our_record_does_not_take_its_place(replica: Replica) -> None:
    """It would have the higher rank, and nobody would republish the record as ours any more."""
    signed = service(seq=MS + 1000)
    forged = spelled_longer(signed)
    assert msgspec.msgpack.decode(forged) == msgspec.msgpack.decode(signed.envelope)
    assert forged > signed.envelope
    with pytest.raises(InvalidRecord, match="shortest"):
        verify(forged)
    replica.keep(KEY, signed, ours=True, spread_at=0.0)
    assert replica.offer(KEY, [forged], b"h" * 20) == [Verdict.REFUSED]
    (row,) = replica.storage.at(KEY)
    assert (row.ours, row.via, row.envelope) == (True, OWN, signed.envelope)


def test_what_was_kept_before_it_was_refused_hides_nothing(replica: Replica) -> None:
    good, other = service(seq=MS + 1000), service("other", seq=MS + 1000)
    replica.keep(KEY, good, ours=False, spread_at=0.0)
    (row,) = replica.storage.at(KEY)
    replica.storage.put([row._replace(slot=b"old", envelope=spelled_longer(other))])
    assert list(replica.held(KEY)) == [good]


def test_the_collector_does_not_walk_through_records() -> None:
    """10,000 of them cost each full collection, which stops the event loop, some 10 ms."""
    signed = service()
    assert not gc.is_tracked(signed)
    assert not gc.is_tracked(signed.record)


def statements(replica: Replica) -> list[str]:
    """What the database is told from now on, shortened to its first word."""
    told: list[str] = []
    replica.storage._db.set_trace_callback(lambda sql: told.append(sql.split()[0]))
    return told


def test_the_records_of_a_datagram_are_kept_in_one_transaction_and_an_echo_needs_none(replica: Replica) -> None:
    key = record_key("category:/text")
    offered = [service(f"s{i}", category="/text").envelope for i in range(3)]
    told = statements(replica)
    assert replica.offer(key, offered) == [Verdict.KEPT] * 3
    assert [word for word in told if word != "SELECT"] == ["BEGIN", "INSERT", "INSERT", "INSERT", "COMMIT"]
    told.clear()
    assert replica.offer(key, offered) == [Verdict.KEPT] * 3
    assert told == ["SELECT"] * 3


def test_a_key_at_which_nothing_stands_is_looked_up_once(replica: Replica) -> None:
    told = statements(replica)
    assert [replica.ordered(KEY).envelopes for _ in range(3)] == [[], [], []]
    assert told == ["SELECT"]
    signed = service()
    replica.offer(KEY, [signed.envelope])
    assert replica.ordered(KEY).envelopes == [signed.envelope]


def test_a_datagram_that_the_disk_does_not_take_leaves_no_trace(
    replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = record_key("category:/text")
    records = [service(f"s{i}", category="/text").envelope for i in range(3)]
    replica.offer(key, records[:1])
    put = Storage.put

    def failing(storage: Storage, rows: Sequence[Row], *, gone: Sequence[Row] = ()) -> None:
        put(storage, rows, gone=gone)
        if storage.occupancy(key).total == 3:
            raise DiskFull("no room")

    monkeypatch.setattr(Storage, "put", failing)
    with pytest.raises(DiskFull):
        replica.offer(key, records)
    assert replica.ordered(key).envelopes == records[:1]
    assert (replica.storage.occupancy(key).total, replica.storage.whole.total) == (1, 1)
    monkeypatch.undo()
    assert replica.offer(key, records) == [Verdict.KEPT] * 3
    assert set(replica.ordered(key).envelopes) == set(records)


def test_a_good_signature_is_checked_once_whatever_the_key_and_a_bad_one_every_time(
    replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked: list[bytes] = []

    def counting(signed: Signed) -> None:
        checked.append(signed.envelope)
        check_signature(signed)

    monkeypatch.setattr("dht.records.verified.check_signature", counting)
    good = service().envelope
    forged = good[:-1] + bytes([good[-1] ^ 1])
    for name in ("id:wc01", "category:/text", "category:/text/count"):
        assert replica.offer(record_key(name), [forged, good]) == [Verdict.REFUSED, Verdict.KEPT]
    assert checked == [forged, good, forged, forged]
