from __future__ import annotations

from pathlib import Path

import pytest

from dht.records.storage import KnownContact, Row, opened_storage
from dht.seats import OWN
from protocol.problems import ConfigError, DiskFull, Problem

KEY = b"k" * 20


def row(slot: bytes = b"s", *, key: bytes = KEY, expiry: int = 100, ours: bool = False, spread_at: float = 0.0) -> Row:
    via = OWN if ours else b"n" * 20
    return Row(key, slot, b"owner", via, 1, False, expiry, ours, spread_at, b"envelope-" + slot)


def test_records_and_contacts_survive_a_restart(tmp_path: Path) -> None:
    database = tmp_path / "state.sqlite"
    contact = KnownContact(b"n" * 20, "10.0.0.1", 7401, 5.0)
    with opened_storage(database) as storage:
        storage.put([row(ours=True)])
        storage.remember([contact])
    with opened_storage(database) as storage:
        assert storage.at(KEY) == [row(ours=True)]
        assert storage.known_contacts(limit=9) == [contact]
        assert storage.whole.owners[b"owner"] == 1


def test_one_row_per_slot_of_a_key() -> None:
    with opened_storage(None) as storage:
        storage.put([row(expiry=1), row(b"t")])
        storage.put([row(expiry=2)], gone=[row(expiry=1)])
        assert {r.slot: r.expiry for r in storage.at(KEY)} == {b"s": 2, b"t": 100}
        storage.put([], gone=[row(expiry=2)])
        assert [r.slot for r in storage.at(KEY)] == [b"t"]
        with pytest.raises(Problem, match="UNIQUE"):
            storage.put([row(b"u"), row(b"t", expiry=3)])
        assert [(r.slot, r.expiry) for r in storage.at(KEY)] == [(b"t", 100)]


def test_of_a_transaction_that_fails_nothing_stays_and_the_counts_are_as_before() -> None:
    with opened_storage(None) as storage:
        storage.put([row(), row(b"t")])

        def fail() -> None:
            with storage.transaction():
                storage.put([row(b"u"), row(b"v", key=b"l" * 20)])
                assert storage.occupancy(KEY).total == 3
                assert storage.occupancy(b"l" * 20).total == 1
                storage.put([row(expiry=50)], gone=[row()])
                assert storage.purge(60.0) == 1
                raise DiskFull("no room")

        for _ in range(2):
            with pytest.raises(DiskFull):
                fail()
            assert storage.at(KEY) == [row(), row(b"t")]
            assert (storage.whole.total, storage.occupancy(KEY).total, storage.occupancy(b"l" * 20).total) == (2, 2, 0)


def test_purge_deletes_what_expired_and_recounts_owners() -> None:
    with opened_storage(None) as storage:
        storage.put([row(expiry=10), row(b"t", expiry=11)])
        assert storage.purge(10.0) == 1
        assert [r.slot for r in storage.at(KEY)] == [b"t"]
        assert storage.whole.owners[b"owner"] == 1


def test_due_rows_come_longest_waiting_first_and_not_after_they_were_spread() -> None:
    with opened_storage(None) as storage:
        rows = [row(bytes([i]), ours=True, spread_at=float(i)) for i in range(5)]
        storage.put([*rows, row(b"theirs")])
        assert storage.due(ours=True, spread_before=3.0, limit=2) == rows[:2]
        storage.mark_spread(rows[:2], 50.0)
        assert storage.due(ours=True, spread_before=3.0, limit=9) == rows[2:4]


def test_a_replaced_row_is_not_marked_as_spread() -> None:
    with opened_storage(None) as storage:
        old = row(ours=True)
        storage.put([old])
        storage.put([old._replace(envelope=b"newer")], gone=[old])
        storage.mark_spread([old], 50.0)
        assert storage.at(KEY)[0].spread_at == 0.0


def test_old_contacts_are_forgotten() -> None:
    with opened_storage(None) as storage:
        storage.remember([KnownContact(bytes([i]) * 20, "10.0.0.1", 1, float(i)) for i in range(4)])
        storage.forget_contacts(2.0)
        assert [c.seen_at for c in storage.known_contacts(limit=9)] == [3.0, 2.0]


def test_checkpoint_folds_the_log_into_the_database(tmp_path: Path) -> None:
    database = tmp_path / "state.sqlite"
    with opened_storage(database) as storage:
        storage.put([row(bytes([i])) for i in range(200)])
        before = database.stat().st_size
        storage.checkpoint()
        assert database.stat().st_size > before


def test_a_damaged_file_is_begun_anew(tmp_path: Path) -> None:
    database = tmp_path / "state.sqlite"
    database.write_bytes(b"this is no database" * 1000)
    with opened_storage(database) as storage:
        storage.put([row(b"a")])
        assert storage.on_disk
    with opened_storage(database) as storage:
        assert len(storage.at(row(b"a").key)) == 1


def test_a_missing_folder_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError), opened_storage(tmp_path / "nowhere" / "state.sqlite"):
        raise AssertionError("opened")
