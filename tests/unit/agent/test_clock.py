"""When the machine's clock was set, and when time only passed."""

from __future__ import annotations

import pytest

from agent.clock import Clock, set_by


@pytest.mark.parametrize(
    ("wall_s", "monotonic_s", "by_s"),
    [(0.2, 0.2, 0.0), (3600.2, 0.2, 3600.0), (-3599.8, 0.2, -3600.0), (3600.0, 3600.5, 0.0), (1.5, 0.0, 0.0)],
)
def test_what_drift_does_not_explain(wall_s: float, monotonic_s: float, by_s: float) -> None:
    assert set_by(wall_s, monotonic_s) == pytest.approx(by_s)


def test_a_setting_is_told_once_and_drift_never_adds_up() -> None:
    readings = iter([(0.0, 0.0), (101.0, 1.0), (102.0, 2.0), *((103.0 + i, 3.0 + i * 0.9) for i in range(100))])
    last = (0.0, 0.0)

    def wall() -> float:
        nonlocal last
        last = next(readings)
        return last[0]

    clock = Clock(wall, lambda: last[1])
    told = [by_s for _, by_s in (clock.read() for _ in range(102))]
    assert told == [100.0, *[0.0] * 101]
