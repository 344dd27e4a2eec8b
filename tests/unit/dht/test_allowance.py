from __future__ import annotations

from dht.records import allowance as module
from dht.records.allowance import Allowance


def taken(allowance: Allowance, sender: bytes, now: float, tries: int = 100) -> int:
    return sum(allowance.take(sender, now) for _ in range(tries))


def test_a_burst_and_then_a_rate() -> None:
    allowance = Allowance(burst=10, per_s=2)
    assert taken(allowance, b"a", 100.0) == 10
    assert taken(allowance, b"a", 103.0) == 6
    assert taken(allowance, b"a", 1e9) == 10, "never more than a burst"


def test_senders_do_not_share() -> None:
    allowance = Allowance(burst=10, per_s=2)
    assert taken(allowance, b"a", 0.0) == taken(allowance, b"b", 0.0) == 10


def test_a_clock_that_jumps_back_gives_nothing_and_takes_nothing() -> None:
    allowance = Allowance(burst=10, per_s=2)
    assert taken(allowance, b"a", 100.0, tries=4) == 4
    assert taken(allowance, b"a", 50.0) == 6
    assert taken(allowance, b"a", 51.0) == 2


def test_memory_is_bounded() -> None:
    allowance = Allowance(burst=1, per_s=1)
    for number in range(module.MAX_SENDERS + 10):
        allowance.take(number.to_bytes(4, "big"), 0.0)
    assert len(allowance._left) == module.MAX_SENDERS
