"""One member offers thousands of records of throwaway keys, all dated ahead, at one key."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dht.records import replica as module
from dht.records.replica import Replica
from dht.records.storage import Storage, opened_storage
from dht.rules import Verdict
from dht.seats import MAX_PER_VIA, OWN
from protocol.identifiers import record_key
from protocol.records import Signed, check_signature
from tests.dht_mesh import service

KEY = record_key("category:/text")
MS = int(time.time() * 1000)
FLOODER, HONEST, RELAY = b"f" * 20, b"h" * 20, b"r" * 20
VM_STEPS = 100


def throwaway(number: int) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(hashlib.sha256(b"throwaway%d" % number).digest())


def fakes(count: int, *, keys: int) -> Iterator[bytes]:
    ahead = int((time.time() + 250) * 1000)
    for i in range(count):
        key = throwaway(i % keys)
        yield service(f"z{i}", seq=ahead, category="/text", expiry=time.time() + 86_400 * 300, key=key).envelope


def real(count: int = 20) -> list[Signed]:
    return [service(f"real{i}", category="/text", key=throwaway(10_000 + i % 4)) for i in range(count)]


def found(storage: Storage, signed: list[Signed]) -> int:
    held = {row.envelope for row in storage.at(KEY)}
    return sum(one.envelope in held for one in signed)


def work(storage: Storage, counts: Counter[str]) -> None:
    """Count the instructions of SQLite's machine in `counts`: every row read or written takes some."""

    def tick() -> int:
        counts["steps"] += VM_STEPS
        return 0

    storage._db.set_progress_handler(tick, VM_STEPS)


@pytest.mark.parametrize("keys", [9000, 9], ids=["9,000 signers", "9 signers"])
def test_9000_records_of_one_member_cost_little_each_and_leave_the_honest_few(
    monkeypatch: pytest.MonkeyPatch, keys: int
) -> None:
    counts: Counter[str] = Counter()

    def counting(signed: Signed) -> None:
        counts["verified"] += 1
        check_signature(signed)

    monkeypatch.setattr("dht.records.verified.check_signature", counting)
    flood = list(fakes(9000, keys=keys))
    honest = real()
    with opened_storage(None) as storage:
        replica = Replica(storage, time.time)
        assert replica.offer(KEY, [s.envelope for s in honest[:10]], HONEST) == [Verdict.KEPT] * 10
        counts.clear()
        work(storage, counts)
        dearest = 0
        for envelope in flood:
            before = counts["steps"]
            replica.offer(KEY, [envelope], FLOODER)
            dearest = max(dearest, counts["steps"] - before)
        assert storage.occupancy(KEY).vias[FLOODER] == MAX_PER_VIA
        assert counts["verified"] <= module.BURST
        assert dearest <= 1500, "an offer reads and writes a few rows, however many stand at the key"
        counts.clear()
        assert [replica.offer(KEY, [e], FLOODER)[0] for e in flood[-100:]] == [Verdict.REFUSED] * 100
        assert counts["verified"] == 0, "what has no room is not verified"
        assert replica.offer(KEY, [s.envelope for s in honest[10:]], RELAY) == [Verdict.KEPT] * 10
        assert found(storage, honest) == 20


def test_what_is_held_costs_neither_a_check_nor_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BURST", 1)
    monkeypatch.setattr(module, "RECORDS_PER_S", 0.0)
    one, two = service("a", category="/text"), service("b", category="/text")
    with opened_storage(None) as storage:
        replica = Replica(storage, time.time)
        offered = [replica.offer(KEY, [envelope], HONEST)[0] for envelope in [one.envelope] * 9 + [two.envelope]]
        assert offered == [Verdict.KEPT] * 9 + [Verdict.REFUSED]
        assert replica.offer(KEY, [two.envelope], RELAY) == [Verdict.KEPT], "senders do not share"


def test_a_new_version_takes_the_slot_though_the_pool_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dht.seats.MAX_PER_VIA", 2)
    with opened_storage(None) as storage:
        replica = Replica(storage, time.time)
        replica.offer(
            KEY, [service(x, seq=MS + 1, category="/text", key=throwaway(ord(x))).envelope for x in "ab"], HONEST
        )
        newer = service("a", seq=MS + 2, category="/text", key=throwaway(ord("a")), content="v2")
        assert replica.offer(KEY, [newer.envelope], RELAY) == [Verdict.KEPT]
        assert storage.occupancy(KEY).vias[HONEST] == 2, "it counts where the older version did"


def test_when_the_node_is_full_who_brought_the_most_loses_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_ROWS", 10)
    with opened_storage(None) as storage:
        replica = Replica(storage, time.time)
        for envelope in fakes(20, keys=20):
            replica.offer(KEY, [envelope], FLOODER)
        assert storage.whole.total == 10
        honest = real(4)
        assert replica.offer(KEY, [s.envelope for s in honest], HONEST) == [Verdict.KEPT] * 4
        assert (storage.whole.total, found(storage, honest)) == (10, 4)
        own = service("own", category="/text")
        replica.keep(KEY, own, ours=True, spread_at=0.0)
        assert (storage.whole.vias[FLOODER], found(storage, [own])) == (5, 1)


def test_one_member_cannot_fill_the_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_ROWS_PER_VIA", 3)
    with opened_storage(None) as storage:
        replica = Replica(storage, time.time)
        verdicts = [replica.offer(KEY, [e], FLOODER)[0] for e in fakes(5, keys=5)]
        assert verdicts == [Verdict.KEPT] * 3 + [Verdict.REFUSED] * 2


def test_of_what_one_member_brought_a_bounded_part_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dht.records.replica.RELAYED_PER_VIA", 5)
    with opened_storage(None) as storage:
        replica = Replica(storage, time.time)
        for envelope in fakes(30, keys=30):
            replica.offer(KEY, [envelope], FLOODER)
        honest, own = real(3), service("own", category="/text")
        replica.offer(KEY, [s.envelope for s in honest], HONEST)
        replica.keep(KEY, own, ours=True, spread_at=0.0)
        passed_on = set(replica.passed_on(KEY))
        vias = Counter(row.via for row in storage.at(KEY) if row.envelope in passed_on)
        assert vias == {FLOODER: 5, HONEST: 3, OWN: 1}
        assert set(replica.passed_on(KEY)) == passed_on, "always the same ones"
        quiet = record_key("id:own")
        replica.keep(quiet, own, ours=True, spread_at=0.0)
        assert list(replica.passed_on(quiet)) == [own.envelope]


def test_counts_follow_what_comes_and_goes(tmp_path: Path) -> None:
    now = time.time()
    with opened_storage(tmp_path / "state.sqlite") as storage:
        replica = Replica(storage, lambda: now)
        for i in range(300):
            replica.offer(KEY, [service(f"s{i}", category="/text", expiry=now + 10 + i).envelope], HONEST)
        assert storage.purge(now + 400) == 256
        assert storage.purge(now + 400) == 44
        assert (storage.whole.total, storage.occupancy(KEY).total, storage.occupancy(KEY).vias.largest) == (
            0,
            0,
            (b"", 0),
        )
