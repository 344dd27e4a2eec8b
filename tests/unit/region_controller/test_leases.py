from __future__ import annotations

from pathlib import Path

import pytest

from protocol.problems import Forbidden, KeyNeeded, TooManyRequests, UnknownInstance
from region_controller import leases as module
from region_controller.journal import open_journal
from region_controller.leases import Held, Leases, later, lease_deadline, token_hash


def a_held(instance: str = "i1") -> Held:
    return Held(instance=instance, digest="d", service_id="s", service_name="n", mem=1, host="h", agent="ann")


def some_leases() -> Leases:
    leases = Leases()
    leases.hold(a_held())
    return leases


def test_a_token_proves_its_own_lease_only() -> None:
    leases = some_leases()
    leases.hold(a_held("i2"))
    leases.grant("i1", "mine", 100.0, 0)
    assert leases.lease("i1", "mine").deadline == 100.0
    with pytest.raises(Forbidden):
        leases.lease("i2", "mine")
    with pytest.raises(KeyNeeded):
        leases.lease("i1", None)
    with pytest.raises(UnknownInstance):
        leases.lease("i3", "mine")
    with pytest.raises(UnknownInstance):
        leases.grant("i3", "mine", None, 0)


def test_only_leases_in_time_count_as_others() -> None:
    leases = some_leases()
    mine = leases.grant("i1", "mine", 10.0, 0)
    leases.grant("i1", "short", 5.0, 0)
    leases.grant("i1", "endless", None, 0)
    assert leases.others(mine, 4) == 2
    assert leases.others(mine, 5) == 1
    leases.end(leases.lease("i1", "endless"))
    assert leases.others(mine, 5) == 0
    assert leases.count(4) == 2
    assert not leases.lapsed("i1", 9.9)
    assert leases.lapsed("i1", 10)


def test_a_lapsed_token_still_works() -> None:
    leases = some_leases()
    leases.grant("i1", "mine", 10.0, 0)
    assert not leases.lease("i1", "mine").live(11)


def test_a_lease_only_grows() -> None:
    leases = some_leases()
    lease = leases.grant("i1", "mine", 10.0, 0)
    assert leases.extend(lease, 5.0).deadline == 10.0
    assert leases.extend(lease, 20.0).deadline == 20.0
    assert leases.extend(lease, None).deadline is None


def test_zero_is_until_stopped() -> None:
    assert lease_deadline(0, 5) is None
    assert lease_deadline(60, 5) == 65
    assert later(None, 5) is None


def test_full_books_make_room_by_what_ran_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_LEASES", 2)
    leases = some_leases()
    leases.grant("i1", "a", 5.0, 0)
    leases.grant("i1", "b", 50.0, 0)
    with pytest.raises(TooManyRequests):
        leases.grant("i1", "c", 50.0, 1)
    leases.grant("i1", "c", 50.0, 6)
    assert leases.count(6) == 2


def test_forgetting_ends_everything() -> None:
    leases = some_leases()
    leases.grant("i1", "mine", None, 0)
    assert leases.forget("i1")
    assert not leases.forget("i1")
    with pytest.raises(UnknownInstance):
        leases.lease("i1", "mine")


async def test_the_journal_remembers_and_never_holds_a_token(tmp_path: Path) -> None:
    path = tmp_path / "new" / "controller.sqlite"
    leases = some_leases()
    async with open_journal(path) as journal:
        journal.save_instance(a_held())
        journal.save_instance(a_held("i2"))
        journal.save_lease(leases.grant("i1", "secret-token", 10.0, 0))
        journal.save_lease(gone := leases.grant("i1", "gone", None, 0))
        await journal.flush()
        journal.end_lease(gone)
        journal.forget("i2")
    async with open_journal(path) as journal:
        held, rows, _ = journal.load()
    assert held == [a_held()]
    assert [(r.token_sha256, r.deadline) for r in rows] == [(token_hash("secret-token"), 10.0)]
    assert all(b"secret-token" not in file.read_bytes() for file in path.parent.iterdir())
