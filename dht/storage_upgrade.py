"""Rows of the layout before `via` was remembered, brought into the present one under the present rules.

A database that was flooded under the old rules so comes down to its bounds: of each key's rows that others brought, the
signers with the most lose first. It is done in steps; one that was cut short is gone on with at the next start.
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import structlog

from dht.database import transaction
from dht.replica import Replica
from dht.seats import EARLIER
from dht.storage import connected, opened_storage, translated
from protocol.problems import InvalidRecord
from protocol.records import reopened

log = structlog.get_logger(__name__)

ROWS_PER_STEP = 256
_STEP = "FROM dht_records ORDER BY key, slot LIMIT ?"


def bring_up_to_date(database: Path, now: float) -> int:
    """Returns how many old rows were looked at. Some 0.2 ms each: call it in a thread. `now` in Unix s.

    Raises what `opened_storage` raises.
    """
    seen = 0
    with opened_storage(database) as storage, translated(database), closing(connected(database)) as old:
        if not old.execute("SELECT 1 FROM sqlite_master WHERE name = 'dht_records'").fetchone():
            return 0
        replica = Replica(storage, lambda: now)
        while step := old.execute(f"SELECT key, slot, ours, spread_at, envelope {_STEP}", (ROWS_PER_STEP,)).fetchall():
            for key, _, ours, spread_at, envelope in step:
                _take(replica, key, envelope, ours=bool(ours), spread_at=spread_at, now=now)
            with transaction(old):
                old.executemany("DELETE FROM dht_records WHERE key = ? AND slot = ?", [row[:2] for row in step])
            seen += len(step)
        old.execute("DROP TABLE dht_records")
        storage.checkpoint()
        log.info("records-brought-up-to-date", before=seen, after=storage.whole.total)
    return seen


def _take(replica: Replica, key: bytes, envelope: bytes, *, ours: bool, spread_at: float, now: float) -> None:
    try:
        signed = reopened(envelope)
    except InvalidRecord as problem:
        log.warning("old-record-dropped", detail=problem.detail)
        return
    if signed.record.expiry > now:
        replica.keep(key, signed, ours=ours, spread_at=spread_at, via=EARLIER)
