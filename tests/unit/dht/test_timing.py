from __future__ import annotations

from dht.overlay.timing import INITIAL_TIMEOUT_S, MAX_TIMEOUT_S, RoundTrips


def test_the_first_wait_is_a_tenth_of_a_second() -> None:
    assert RoundTrips().timeout("a") == INITIAL_TIMEOUT_S


def test_a_slow_peer_is_given_its_time_and_a_quick_one_not_less_than_the_floor() -> None:
    trips = RoundTrips()
    for _ in range(20):
        trips.heard("slow", 0.3, 0.3)
        trips.heard("quick", 0.001, 0.001)
    assert 0.3 < trips.timeout("slow") < 0.4
    assert trips.timeout("quick") == INITIAL_TIMEOUT_S


def test_a_peer_not_heard_yet_is_judged_by_the_others() -> None:
    trips = RoundTrips()
    for _ in range(20):
        trips.heard("slow", 0.3, 0.3)
    assert trips.timeout("new") > 0.3


def test_no_wait_is_longer_than_a_second() -> None:
    trips = RoundTrips()
    trips.heard("a", 30.0, 30.0)
    assert trips.timeout("a") == MAX_TIMEOUT_S


def test_losses_do_not_make_the_wait_longer_and_longer() -> None:
    trips = RoundTrips()
    trips.heard("a", 0.02, 0.02)
    for _ in range(20):
        lost_with_the_first = trips.timeout("a")
        trips.heard("a", lost_with_the_first + 0.02, 0.02)
    assert trips.timeout("a") == INITIAL_TIMEOUT_S


def test_a_peer_that_became_slow_is_given_its_time() -> None:
    trips = RoundTrips()
    trips.heard("a", 0.02, 0.02)
    for _ in range(20):
        until_repeated = trips.timeout("a")
        trips.heard("a", 0.4, 0.4 if until_repeated > 0.4 else 0.4 - until_repeated)
    assert trips.timeout("a") > 0.4
