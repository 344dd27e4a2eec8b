"""What the controller counts of its starts."""

from __future__ import annotations

from region_controller.stats import BUCKETS_S, Histogram, Stats


def test_a_time_falls_into_the_first_bucket_that_holds_it() -> None:
    taken = Histogram().with_one(0.001).with_one(0.0011).with_one(500.0)
    assert (taken.counts[0], taken.counts[1], taken.counts[-1], sum(taken.counts)) == (1, 1, 1, 3)
    assert len(taken.counts) == len(BUCKETS_S) + 1
    assert taken.total_s == 500.0021


def test_a_start_counts_in_the_phases_that_it_went_through() -> None:
    stats = Stats()
    stats.started("cold", {"fetch": 40.0, "total": 90.0, "build": 0.0})
    stats.started("warm", {"total": 1.0})
    assert (stats.starts["cold"], stats.starts["warm"]) == (1, 1)
    assert {phase: sum(taken.counts) for phase, taken in stats.phases.items() if taken.total_s} == {
        "fetch": 1,
        "total": 2,
    }
