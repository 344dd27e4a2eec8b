"""Too many requests, of one client or of all, are refused at once and with a time to come back."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from protocol.problems import TooManyRequests
from region_controller.admission import Admission


def asked(admission: Admission, client: str, now: float) -> bool:
    try:
        with admission.request(client, now):
            return True
    except TooManyRequests as problem:
        return not problem.retry_after


def test_one_client_has_a_burst_and_then_its_rate_and_others_have_theirs() -> None:
    admission = Admission(per_client_s=2, burst=3, at_once=10)
    assert [asked(admission, "10.0.0.1", 0.0) for _ in range(4)] == [True, True, True, False]
    assert asked(admission, "10.0.0.2", 0.0)
    assert [asked(admission, "10.0.0.1", 0.5) for _ in range(2)] == [True, False]
    assert admission.refused == 2


def test_so_many_are_under_way_at_once_whoever_asks() -> None:
    admission = Admission(per_client_s=0, burst=1, at_once=2)
    with ExitStack() as under_way:
        for _ in range(2):
            under_way.enter_context(admission.request("10.0.0.1", 0.0))
        with pytest.raises(TooManyRequests, match="2 requests"), admission.request("10.0.0.9", 0.0):
            pass
    assert asked(admission, "10.0.0.9", 0.0), "the others have been answered"


def test_a_request_that_fails_makes_room_as_well() -> None:
    admission = Admission(per_client_s=0, burst=1, at_once=1)
    with pytest.raises(ValueError, match="failed"), admission.request("10.0.0.1", 0.0):
        raise ValueError("failed")
    assert asked(admission, "10.0.0.1", 0.0)
