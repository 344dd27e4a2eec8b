from __future__ import annotations

import random

from kademlia.node import Node

from dht.overlay.datagrams import Address
from dht.overlay.routing import PROOF_HOLDS_S, REST_S, Routing, refresh_targets

HERE = Address("10.0.0.1", 7401)
OWN = bytes(20)


def ids(count: int, seed: int = 1) -> list[bytes]:
    chance = random.Random(seed)
    return [chance.randbytes(20) for _ in range(count)]


def test_the_closest_contacts_are_exactly_the_closest() -> None:
    routing = Routing(OWN, k=20)
    for node_id in ids(400):
        routing.alive(node_id, HERE)
    known = [n.id for n in routing.table.contacts()]
    for key in ids(20, seed=2):
        nearest = sorted(known, key=lambda n: int.from_bytes(n, "big") ^ int.from_bytes(key, "big"))
        assert [n.id for n in routing.closest(key, 20)] == nearest[:20]


def test_the_closest_are_right_after_contacts_came_went_and_moved() -> None:
    routing = Routing(OWN, k=20)
    known = ids(60)
    for node_id in known:
        routing.alive(node_id, HERE)
        routing.closest(OWN, 8)
    elsewhere = Address("10.0.0.2", 7401)
    routing.alive(known[0], elsewhere)
    for _ in range(2):
        routing.failed(known[1], HERE, 0.0)
    found = routing.closest(known[0], 60)
    assert [n.id for n in found] == [n.id for n in sorted(routing.table.contacts(), key=found[0].distance_to)]
    assert known[1] not in {n.id for n in found}
    assert (found[0].id, found[0].ip) == (known[0], elsewhere.host)


def test_a_full_far_bucket_names_a_contact_to_check_and_keeps_the_newcomer_in_reserve() -> None:
    routing = Routing(OWN, k=2)
    prefix = b"\xf8"
    doubtful = [routing.alive(prefix + bytes([i]) * 19, HERE) for i in range(64)]
    asked = [node for node in doubtful if node is not None]
    assert asked, "the far bucket never filled"
    before = len(routing)
    routing.failed(asked[-1].id, HERE, 0.0)
    routing.failed(asked[-1].id, HERE, 0.0)
    assert routing.table.get(asked[-1].id) is None
    assert len(routing) == before, "a reserve node took the place"


def test_two_failures_in_a_row_evict_and_one_answer_between_them_forgives() -> None:
    routing = Routing(OWN, k=20)
    (node_id,) = ids(1)
    routing.alive(node_id, HERE)
    routing.failed(node_id, HERE, 0.0)
    routing.alive(node_id, HERE)
    routing.failed(node_id, HERE, 1.0)
    assert len(routing) == 1
    routing.failed(node_id, HERE, 2.0)
    assert len(routing) == 0
    assert [n.id for n in routing.lost_members()] == [node_id]


def test_an_evicted_node_rests_longer_each_time_and_is_asked_again() -> None:
    routing = Routing(OWN, k=20)
    (node_id,) = ids(1)
    routing.alive(node_id, HERE)
    routing.failed(node_id, HERE, 0.0)
    routing.failed(node_id, HERE, 0.0)
    assert routing.is_resting(node_id, REST_S - 0.1)
    assert [n.id for n in routing.to_ask_again(REST_S)] == [node_id]
    routing.failed(node_id, HERE, REST_S)
    assert routing.is_resting(node_id, 3 * REST_S - 0.1)
    assert not routing.is_resting(node_id, 3 * REST_S)
    routing.alive(node_id, HERE)
    assert routing.lost_members() == []


def test_a_node_that_was_only_heard_of_is_no_lost_member() -> None:
    routing = Routing(OWN, k=20)
    (node_id,) = ids(1)
    routing.failed(node_id, HERE, 0.0)
    assert routing.is_resting(node_id, 1.0)
    assert routing.lost_members() == []


def test_a_proof_holds_for_one_address_and_for_a_day() -> None:
    routing = Routing(OWN, k=20)
    (node_id,) = ids(1)
    routing.proved(node_id, HERE, 0.0)
    routing.alive(node_id, HERE)
    assert routing.is_proven(node_id, HERE, PROOF_HOLDS_S - 1)
    assert not routing.is_proven(node_id, HERE, PROOF_HOLDS_S)
    assert not routing.is_proven(node_id, Address("10.0.0.2", 7401), 1.0)
    routing.alive(node_id, Address("10.0.0.2", 7401))
    (contact,) = routing.table.contacts()
    assert contact.ip == "10.0.0.2"


def test_the_own_id_is_no_contact() -> None:
    routing = Routing(OWN, k=20)
    routing.alive(OWN, HERE)
    assert len(routing) == 0


def test_refresh_targets_lie_one_in_each_sibling_subtree() -> None:
    own = int("1010" + "0" * 156, 2).to_bytes(20, "big")
    targets = [f"{int.from_bytes(t, 'big'):0160b}" for t in refresh_targets(own, 4, b"\xff" * 20)]
    assert [t[: i + 1] for i, t in enumerate(targets)] == ["0", "11", "100", "1011"]
    assert all(Node(int(t, 2).to_bytes(20, "big")).long_id & 0xFF == 0xFF for t in targets)
