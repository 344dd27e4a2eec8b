"""What was withdrawn never comes back, not even from who kept a copy until the tombstone was forgotten."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dht.records.replica import Replica
from dht.records.storage import opened_storage
from dht.records.views import View
from dht.rules import Verdict
from protocol.identifiers import record_key
from protocol.records import LIFETIME_S
from tests.dht_mesh import service

KEY = record_key("id:wc01")
EPOCH = 1_800_000_000
LIFETIME = LIFETIME_S["service"]

lives = st.integers(1, LIFETIME + 86_400) | st.sampled_from([LIFETIME - 1, LIFETIME, LIFETIME + 1])
pauses = st.integers(0, 2 * LIFETIME) | st.sampled_from([0, 1, LIFETIME - 1, LIFETIME, LIFETIME + 1])
fractions = st.integers(0, 999)


@given(life=lives, tomb_life=lives, until_withdrawn=pauses, ms=st.tuples(fractions, fractions), waits=st.lists(pauses))
def test_a_record_never_outlives_its_tombstone(
    life: int, tomb_life: int, until_withdrawn: int, ms: tuple[int, int], waits: list[int]
) -> None:
    """Any lifetimes that a signer may write, replayed at any later moments."""
    dates = EPOCH * 1000 + ms[0], max(EPOCH * 1000 + ms[0], (EPOCH + until_withdrawn) * 1000 + ms[1])
    record = service(seq=dates[0], expiry=EPOCH + life)
    tombstone = service(seq=dates[1], expiry=EPOCH + until_withdrawn + tomb_life, withdrawn=True)
    now = [float(EPOCH + 1)]
    with opened_storage(None) as storage:
        replica = Replica(storage, lambda: now[0])
        replica.offer(KEY, [record.envelope])
        now[0] += until_withdrawn
        buried = replica.offer(KEY, [tombstone.envelope]) == [Verdict.KEPT]
        assert buried == (tomb_life == LIFETIME)
        for wait in waits:
            now[0] += wait
            replica.offer(KEY, [record.envelope])
            shown = View(KEY, replica.held(KEY)).visible(now[0])
            assert not (buried and shown)
