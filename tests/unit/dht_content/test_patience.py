from __future__ import annotations

import pytest

from dht.swarm.patience import BARREN_S, LEAST_BYTES, STUCK_S, Patience


@pytest.mark.parametrize(
    ("bytes_a_second", "gives_up_after"), [(0, STUCK_S), (1, STUCK_S), (LEAST_BYTES, BARREN_S)], ids=str
)
def test_what_brings_no_whole_chunk_is_given_up_the_sooner_the_less_it_brings(
    bytes_a_second: int, gives_up_after: float
) -> None:
    patience = Patience(0.0)
    for second in range(1, int(BARREN_S) + 10):
        patience.heard(bytes_a_second, second)
        assert patience.is_over(second) is (second > gives_up_after)
        if patience.is_over(second):
            return
    raise AssertionError("it goes on for ever")


def test_who_gains_or_is_told_to_wait_goes_on() -> None:
    patience = Patience(0.0)
    for second in range(0, 1000, int(STUCK_S)):
        assert not patience.is_over(second)
        patience.gained(second)
