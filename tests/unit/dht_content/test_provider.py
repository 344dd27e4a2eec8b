from __future__ import annotations

from dht.swarm.provider import Provider

REST = {"rest_s": 1.0, "max_rest_s": 3.0}


def test_rests_double_up_to_a_bound_and_one_outage_counts_once() -> None:
    provider = Provider(None)
    assert provider.failed(10.0, "silent", **REST)
    assert not provider.failed(10.5, "broke off", **REST)
    assert (provider.strikes, provider.rest_until, provider.trouble) == (1, 11.0, "broke off")
    assert provider.failed(11.0, "silent", **REST)
    assert provider.rest_until == 13.0
    assert provider.failed(13.0, "silent", **REST)
    assert provider.rest_until == 16.0


def test_a_busy_provider_that_works_for_us_takes_fewer_and_else_rests() -> None:
    provider = Provider(None, requests={1, 2})
    provider.busy(10.0, 60.0, "busy", max_busy_s=2.0)
    assert (provider.depth, provider.rest_until) == (2, 0.0)
    provider.requests.clear()
    provider.busy(10.0, 60.0, "busy", max_busy_s=2.0)
    assert provider.rest_until == 12.0
    assert provider.strikes == 0


def test_a_piece_that_others_pass_on_is_offered_but_not_given_yet() -> None:
    provider = Provider(frozenset({1, 2}), elsewhere={1: 5.0})
    assert provider.offers(1)
    assert not provider.gives(1, 4.9)
    assert provider.gives(1, 5.0)
    assert not provider.offers(3)
