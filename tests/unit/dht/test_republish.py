from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from dht.overlay import Overlay, StoreOutcome
from dht.records.replica import Replica
from dht.records.republish import (
    HELD_INTERVAL_S,
    JITTER,
    OURS_INTERVAL_S,
    RETRY_S,
    MeshNews,
    Republisher,
    distance,
    interval,
    is_due,
    owed,
    spread_again_from,
)
from dht.records.storage import Row, Storage, opened_storage


def key(last: int) -> bytes:
    return bytes(19) + bytes([last])


def row(spread_at: float, *, ours: bool = True) -> Row:
    return Row(key(0), b"slot", b"owner", b"via", 1, False, 10_000, ours, spread_at, b"envelope")


def test_intervals_are_spread_by_a_tenth_and_the_same_for_one_key() -> None:
    ours = [interval(key(i), ours=True) for i in range(256)]
    assert min(ours) == OURS_INTERVAL_S * (1 - JITTER)
    assert max(ours) == OURS_INTERVAL_S * (1 + JITTER)
    assert interval(key(7), ours=True) == ours[7]


def test_what_nobody_took_is_due_at_once_and_what_was_spread_after_its_interval() -> None:
    now = 5000.0
    assert is_due(row(0.0), now)
    assert not is_due(row(now - OURS_INTERVAL_S * (1 - JITTER) + 1), now)
    assert is_due(row(now - OURS_INTERVAL_S * (1 - JITTER)), now)
    assert not is_due(row(now - OURS_INTERVAL_S, ours=False), now)
    assert is_due(row(now - HELD_INTERVAL_S, ours=False), now)


def test_too_few_acks_make_a_row_due_again_soon() -> None:
    again = spread_again_from(key(0), 5000.0, ours=True, enough=False)
    assert not is_due(row(again), 5000.0 + RETRY_S - 1)
    assert is_due(row(again), 5000.0 + RETRY_S)
    assert spread_again_from(key(0), 5000.0, ours=True, enough=True) == 5000.0


def test_a_newcomer_is_told_by_the_nearest_holders_only() -> None:
    nearest = [key(1), key(2), key(4), key(8), key(16)]
    assert owed(key(0), key(3), nearest, {key(4)}) == [key(4)]
    assert owed(key(0), key(32), nearest, {key(4)}) == []
    assert owed(key(0), key(3), nearest, {key(64)}) == []


def test_distance_is_exclusive_or() -> None:
    assert distance(key(5), key(6)) == 3


class Mesh:
    """Takes everything, and knows when."""

    connected = True

    def __init__(self) -> None:
        self.now = 10_000.0
        self.spread: list[tuple[float, bytes]] = []

    async def store(self, key: bytes, envelopes: Sequence[bytes]) -> StoreOutcome:
        self.spread.append((self.now, key))
        return StoreOutcome(asked=5, acks=5, enough=True)


class Counting(Storage):
    looks = 0

    def due(self, *, ours: bool, spread_before: float, limit: int) -> list[Row]:
        self.looks += 1
        return super().due(ours=ours, spread_before=spread_before, limit=limit)


async def test_what_is_due_is_spread_on_time_though_the_rows_are_looked_at_only_when_something_can_be_due() -> None:
    mesh = Mesh()
    with opened_storage(None) as plain:
        storage = Counting(plain._db, None)
        republisher = Republisher(
            Replica(storage, lambda: mesh.now),
            cast(Overlay, mesh),
            MeshNews(),
            replicas=8,
            clock=lambda: mesh.now,
        )
        began = mesh.now
        storage.put(
            [
                row(began)._replace(expiry=100_000),
                row(began, ours=False)._replace(key=key(255), expiry=100_000),
            ]
        )
        for second in range(2000):
            mesh.now = began + second
            if second == 100:
                storage.put([row(0.0)._replace(key=key(128), expiry=100_000)])
            await republisher.spread_due()
    ours, late, held = (interval(key(k), ours=o) for k, o in ((0, True), (128, True), (255, False)))
    expected = sorted([(100.0, key(128)), (ours, key(0)), (100 + late, key(128)), (held, key(255))])
    assert [k for _, k in mesh.spread[:4]] == [k for _, k in expected]
    assert all(-1e-6 <= when - began - due <= 1 for (when, _), (due, _) in zip(mesh.spread, expected, strict=False))
    assert storage.looks < 50


async def test_after_the_clock_was_set_back_what_is_ours_is_spread_at_once_and_nothing_waits_for_that_time() -> None:
    mesh, day = Mesh(), 86_400.0
    with opened_storage(None) as storage:
        republisher = Republisher(
            Replica(storage, lambda: mesh.now), cast(Overlay, mesh), MeshNews(), replicas=8, clock=lambda: mesh.now
        )
        ahead = mesh.now + day
        storage.put([row(ahead)._replace(expiry=10**9), row(ahead, ours=False)._replace(key=key(255), expiry=10**9)])
        mesh.now = ahead
        await republisher.step()
        assert mesh.spread == []
        mesh.now = began = ahead - day
        await republisher.step()
        assert mesh.spread == [(began, key(0))]
        mesh.now = began + HELD_INTERVAL_S * (1 + JITTER)
        await republisher.step()
        assert {key for _, key in mesh.spread[1:]} == {key(0), key(255)}
