from __future__ import annotations

from dht.overlay.membership import FIRST_REFRESH_S, REFRESH_AFTER_RETURN_S, REJOIN_S, RETURN_S, Schedule

NOW = 1000.0


def schedule() -> Schedule:
    due = Schedule()
    due.begin(NOW)
    return due


def test_the_pause_between_joins_doubles_up_to_a_bound_and_starts_again_after_success() -> None:
    due = schedule()
    pauses = []
    for _ in range(6):
        due.tried_to_join(NOW, joined=False)
        pauses.append(due.join_at - NOW)
    assert pauses == [2.0, 4.0, 8.0, REJOIN_S[1], REJOIN_S[1], REJOIN_S[1]]
    due.tried_to_join(NOW, joined=True)
    assert due.join_at == NOW + REJOIN_S[0]


def test_a_return_is_told_once_and_brings_the_refresh_forward() -> None:
    due = schedule()
    assert due.refresh_at == NOW + FIRST_REFRESH_S
    assert due.member_came_back(NOW)
    assert due.refresh_at == NOW + REFRESH_AFTER_RETURN_S
    assert not due.member_came_back(NOW + RETURN_S - 1)
    assert due.refresh_at == NOW + REFRESH_AFTER_RETURN_S
    assert due.member_came_back(NOW + RETURN_S)


def test_a_return_does_not_put_off_a_refresh_that_is_due() -> None:
    due = schedule()
    due.refresh_at = NOW + 1
    assert due.member_came_back(NOW)
    assert due.refresh_at == NOW + 1
