"""Which connections for content may stay."""

from __future__ import annotations

from dht.swarm.connection_limits import MAX_CONNECTIONS, MAX_OF_ONE_PEER, MAX_UNKNOWN, ConnectionLimits


def test_of_too_many_strangers_the_oldest_goes() -> None:
    limits: ConnectionLimits[int] = ConnectionLimits()
    assert [limits.arrived(n) for n in range(MAX_UNKNOWN)] == [[]] * MAX_UNKNOWN
    assert limits.arrived(1000) == [0]
    assert limits.arrived(1001) == [1]
    assert not limits.identified(0, "peer"), "it made room already"


def test_a_member_among_strangers_stays() -> None:
    limits: ConnectionLimits[int] = ConnectionLimits()
    limits.arrived(-1)
    assert limits.identified(-1, "member")
    closed = [c for n in range(10 * MAX_UNKNOWN) for c in limits.arrived(n)]
    assert -1 not in closed
    assert len(closed) == 9 * MAX_UNKNOWN


def test_one_peer_has_its_share_and_gets_it_back() -> None:
    limits: ConnectionLimits[int] = ConnectionLimits()
    admitted = []
    for n in range(MAX_OF_ONE_PEER + 1):
        limits.arrived(n)
        admitted.append(limits.identified(n, "greedy"))
    assert admitted == [True] * MAX_OF_ONE_PEER + [False]
    limits.gone(0)
    limits.gone(MAX_OF_ONE_PEER)
    limits.arrived(5000)
    assert limits.identified(5000, "greedy")


def test_a_full_house_admits_nobody_until_somebody_leaves() -> None:
    limits: ConnectionLimits[int] = ConnectionLimits()
    for n in range(MAX_CONNECTIONS):
        limits.arrived(n)
        assert limits.identified(n, f"peer {n % 64}")
    assert limits.arrived(-1) == [-1]
    limits.gone(7)
    assert limits.arrived(-2) == []
