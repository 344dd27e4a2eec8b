from __future__ import annotations

from dht.clocks import HEARD_S, MAX_REMEMBERED, Clocks

DATE, AT = "Tue, 24 Nov 2026 12:00:00 GMT", 1_795_521_600.0


def test_what_was_heard_lately_counts_and_the_many_more_than_the_few() -> None:
    clocks = Clocks()
    assert clocks.ahead(0.0) == 0.0
    for address, ahead in (("a", 172_800.0), ("b", 172_801.0), ("liar", -10e6)):
        clocks.heard(address, DATE, AT + ahead, 0.0)
    assert clocks.ahead(1.0) == 172_801.0
    clocks.heard("b", DATE, AT, 1.0)
    clocks.heard("c", DATE, AT + 1, 1.0)
    assert clocks.ahead(1.0) == 1.0, "half of them agree with this clock"
    clocks.heard("a", DATE, AT, 100.0)
    assert clocks.ahead(100.0) == 0.0
    assert clocks.ahead(HEARD_S + 50) == 0.0, "only a is left"
    assert clocks.ahead(HEARD_S + 200) == 0.0


def test_what_is_no_date_is_passed_over_and_memory_is_bounded() -> None:
    clocks = Clocks()
    for date in ("", "yesterday", "Tue, 99 Nov 2026 12:00:00 GMT", "x" * 10_000):
        clocks.heard("a", date, AT, 0.0)
    assert clocks.ahead(0.0) == 0.0
    for number in range(3 * MAX_REMEMBERED):
        clocks.heard(f"10.0.0.{number}", DATE, AT + 5, 0.0)
    assert clocks.ahead(0.0) == 5.0
    assert len(clocks._ahead) == MAX_REMEMBERED
