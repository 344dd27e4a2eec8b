"""Whom to ask for a manifest first."""

from __future__ import annotations

from dht.swarm.transfer import MANIFESTS_ASKED_AT_ONCE, manifests_at_once


def test_the_near_ones_alone_while_they_may_answer_then_some_more_with_every_silence() -> None:
    assert [manifests_at_once(near, 0) for near in (0, 1, 2, 3)] == [MANIFESTS_ASKED_AT_ONCE, 1, 2, 3]
    assert [manifests_at_once(1, silences) for silences in (1, 2)] == [2, 3]
