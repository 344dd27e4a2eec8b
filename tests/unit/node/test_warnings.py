from __future__ import annotations

import pytest

from node.warnings import REMIND_S, Told, clock_warning
from protocol.problems import DiskFull, Problem


@pytest.mark.parametrize(("ahead", "words"), [(172_800.4, "172800 s ahead of"), (-200.0, "200 s behind")])
def test_a_clock_that_differs_is_named_with_its_fix(ahead: float, words: str) -> None:
    warning = clock_warning(ahead)
    assert warning is not None
    assert words in warning.detail
    assert "timedatectl" in warning.fix
    assert clock_warning(ahead / 1e4) is None


def test_trouble_is_told_when_it_begins_when_it_ends_and_seldom_in_between() -> None:
    told, clock = Told(), Problem("it is 5 s behind", fix="Set the clock.")
    full = DiskFull("3 MB free", fix="Free disk space.")
    assert told.news([clock], 0.0) == ([clock], [])
    again = Problem("it is 6 s behind", fix="Set the clock.")
    assert told.news([again, full], 10.0) == ([full], [])
    assert told.news([again, full], REMIND_S) == ([again], [])
    assert told.news([full], REMIND_S + 1) == ([], ["Set the clock."])
    assert told.news([clock, full], REMIND_S + 2) == ([clock], [])
