"""Real nodes over UDP on loopback: strangers, hostile members, dead nodes, restarts."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import msgspec
import pytest
from structlog.testing import capture_logs

from dht.overlay import Tuning
from dht.overlay.messages import decode
from dht.overlay.sealing import MAX_DATAGRAM, Keyring, Sealer
from dht.records.replica import Replica
from protocol.identifiers import node_id, record_key
from protocol.problems import ConfigError, DiskFull, PortTaken, Unavailable
from protocol.records import raw_public_key
from tests.dht_mesh import KEYRING, identity, mesh, node, service
from tests.waiting import until

SMALL = Tuning(k=4, replicas=3, acks=2)
"""Fewer replicas than nodes: most nodes have to look records up."""


class Socket(asyncio.DatagramProtocol):
    """A bare UDP socket that keeps what it receives."""

    def __init__(self) -> None:
        self.received: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self.received.append(data)


@asynccontextmanager
async def bare_socket() -> AsyncIterator[tuple[asyncio.DatagramTransport, Socket]]:
    transport, protocol = await asyncio.get_running_loop().create_datagram_endpoint(Socket, local_addr=("127.0.0.1", 0))
    try:
        yield transport, protocol
    finally:
        transport.close()
        await asyncio.sleep(0)


def free_udp_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


async def test_twelve_nodes_find_what_few_of_them_keep() -> None:
    signed = [service(f"s{i}", content=str(i)) for i in range(12)]
    async with mesh(12, tuning=SMALL) as nodes:
        for publisher, one in zip(nodes, signed, strict=True):
            await publisher.publish(one)
        for i, one in enumerate(signed):
            for reader in nodes:
                assert [s.envelope for s in await reader.services(f"id:s{i}")] == [one.envelope]
        rows = [n.stats()["records"] for n in nodes]
        everything = sum(len(s.record.names) for s in signed)
        assert max(rows) < everything, "every node keeps everything: nothing was looked up"


async def test_publish_is_visible_everywhere_within_two_seconds_with_a_third_dead() -> None:
    async with AsyncExitStack() as survivors, AsyncExitStack() as doomed:
        first = await survivors.enter_async_context(node(0, tuning=SMALL))
        nodes = [first]
        for number in range(1, 12):
            stack = doomed if number % 3 == 0 else survivors
            joined = await stack.enter_async_context(node(number, bootstrap=first.contacts()[:1], tuning=SMALL))
            nodes += [joined] if stack is survivors else []
        await doomed.aclose()
        began = time.monotonic()
        signed = service("od01")
        await nodes[3].publish(signed)
        for reader in nodes:
            assert [s.envelope for s in await reader.services("id:od01")] == [signed.envelope]
        assert time.monotonic() - began < 2.0 * len(nodes)


async def test_a_stranger_gets_silence_and_harms_nothing() -> None:
    other_key = Keyring(mesh="test", keys={1: b"x" * 32}, current=1)
    async with mesh(2) as nodes, node(9, bootstrap=nodes[0].contacts()[:1], keyring=other_key) as stranger:
        assert stranger.stats()["contacts"] == 0
        assert all(n.stats()["contacts"] == 1 for n in nodes)
        with pytest.raises(Unavailable):
            await stranger.services("id:od01")
        await nodes[0].publish(service("od01"))
        assert len(await nodes[1].services("id:od01")) == 1


async def test_garbage_is_answered_with_silence() -> None:
    async with mesh(2) as nodes, bare_socket() as (transport, sock):
        target = ("127.0.0.1", nodes[0].udp_port)
        for size in (0, 1, 14, 30, 500, MAX_DATAGRAM, 4000):
            transport.sendto(os.urandom(size), target)
        sealer = Sealer(KEYRING)
        transport.sendto(sealer.seal(b"\xc1 not msgpack", target), target)
        await until(lambda: nodes[0].stats().get("datagrams_malformed", 0) == 1)
        await nodes[0].publish(service("od01"))
        assert len(await nodes[1].services("id:od01")) == 1
        assert sock.received == []


HEAD = [b"i" * 8, b"s" * 20, False]
MALFORMED = [
    [1, *HEAD, b"short"],
    [1, *HEAD, "text instead of bytes....."],
    [1, *HEAD],
    [2, *HEAD, b"k" * 20, 5],
    [2, *HEAD, b"k" * 20, b"a cursor that is too long"],
    [3, *HEAD, b"k" * 20, {"value": [1]}],
    [3, *HEAD, b"k" * 20, [[1]]],
    [0, b"i" * 8, 12, False],
    [0, b"i" * 8, b"s" * 20, "yes"],
    [17, b"i" * 8, b"s" * 20, None, [[b"n" * 20, b"12345", 70_000]]],
    [99, *HEAD],
    {"value": [1]},
    None,
]


@pytest.mark.parametrize("arguments", MALFORMED, ids=range(len(MALFORMED)))
async def test_a_member_that_sends_malformed_requests_gets_silence(arguments: object) -> None:
    async with node(0) as victim, bare_socket() as (transport, sock):
        target = ("127.0.0.1", victim.udp_port)
        transport.sendto(Sealer(KEYRING).seal(msgspec.msgpack.encode(arguments), target), target)
        await until(lambda: victim.stats().get("datagrams_malformed", 0) == 1)
        assert await victim.services("id:od01") == []
        assert victim.stats()["crashes"] == 0
        assert sock.received == []


async def test_a_member_cannot_plant_a_record_under_a_foreign_name_or_with_a_broken_signature() -> None:
    signed = service("od01")
    broken = signed.envelope[:-1] + bytes([signed.envelope[-1] ^ 1])
    async with node(0) as victim, bare_socket() as (transport, sock):
        request = [3, *HEAD, record_key("id:victim"), [signed.envelope, broken, b"", b"x" * 200]]
        target = ("127.0.0.1", victim.udp_port)
        transport.sendto(Sealer(KEYRING).seal(msgspec.msgpack.encode(request), target), target)
        answers = await until(lambda: [m for d in sock.received if isinstance(m := opened(d), list) and m[0] == 19])
        assert answers[0][4] == [2, 2, 2, 2]
        assert victim.stats()["records"] == 0


async def test_who_cannot_prove_an_id_never_becomes_a_contact() -> None:
    """A member of the mesh claims the id of another node."""
    async with node(0) as victim, bare_socket() as (transport, sock):
        claimed = bytes.fromhex(node_id(raw_public_key(identity(5))))
        sealer = Sealer(KEYRING)
        target = ("127.0.0.1", victim.udp_port)
        transport.sendto(sealer.seal(msgspec.msgpack.encode([0, b"i" * 8, claimed, False]), target), target)
        asked = await until(lambda: [m for d in sock.received if isinstance(m := opened(d), list) and m[0] == 0])
        assert asked[0][3] is True, "the victim asks for a proof"
        admission = [2**40, b"a" * 64]
        claims = [[raw_public_key(identity(n)), b"s" * 64, admission] for n in (5, 6)]
        for proof in (None, *claims):
            transport.sendto(sealer.seal(msgspec.msgpack.encode([16, asked[0][1], claimed, proof]), target), target)
        await until(lambda: victim.stats().get("datagrams_timeouts", 0) == 1)
        assert victim.stats()["contacts"] == 0


def opened(datagram: bytes) -> object:
    """The message as a plain list."""
    found = Sealer(KEYRING).open(datagram)
    assert found is not None
    assert decode(found.plaintext) is not None
    return msgspec.msgpack.decode(found.plaintext)


async def test_records_contacts_and_what_is_ours_survive_a_restart(tmp_path: Path) -> None:
    signed = service("od01")
    database = tmp_path / "state.sqlite"
    async with node(1) as other:
        async with node(0, database=database, bootstrap=other.contacts()) as first:
            await first.publish(signed)
        async with node(0, database=database) as again:
            assert again.stats()["contacts"] == 1, "no bootstrap address was given: the contact was remembered"
            assert [s.envelope for s in await again.services("id:od01")] == [signed.envelope]


async def test_what_was_published_alone_is_spread_when_somebody_comes(tmp_path: Path) -> None:
    signed = service("od01")
    async with node(0) as alone:
        await alone.publish(signed)
        async with node(1, bootstrap=alone.contacts()) as newcomer:
            assert [s.envelope for s in await newcomer.services("id:od01")] == [signed.envelope]
            await until(lambda: newcomer.stats()["records"] == len(signed.record.names))


async def test_a_record_outlives_its_publisher() -> None:
    signed = service("od01")
    async with mesh(3) as nodes:
        async with node(7, bootstrap=nodes[0].contacts()[:1]) as publisher:
            await publisher.publish(signed)
        for reader in nodes:
            assert [s.envelope for s in await reader.services("id:od01")] == [signed.envelope]


async def test_a_node_whose_clock_was_two_days_ahead_for_a_while_is_found_again_at_once() -> None:
    ahead_s = 2 * 86_400
    digest = "sha256:" + "ab" * 32
    async with node(0) as first, node(1, bootstrap=first.contacts(), clock=lambda: time.time() + ahead_s) as wrong:
        await until(lambda: wrong.stats()["contacts"])

        async def announce() -> None:
            await wrong.announce_region(region="eu", agents=1, memory_total=1, memory_free=1)
            await wrong.announce_due()

        now = time.time() + ahead_s
        dated_ahead = service(seq=int(now * 1000), expiry=now + 3600, content="dated ahead")
        with pytest.raises(Unavailable, match="no other node took"):
            await wrong.publish(dated_ahead)
        await wrong.announce_content(digest)
        await announce()
        assert (await first.services("id:wc01"), await first.regions("region:eu")) == ([], [])
        ahead_s = 0
        right = service()
        await wrong.publish(right)
        await announce()
        assert [s.envelope for s in await first.services("id:wc01")] == [right.envelope]
        assert [r.node for r in await first.regions("region:eu")] == [wrong.node]
        assert [r.node for r in await first.providers(digest)] == [wrong.node]


async def test_nobody_in_reach_is_unavailable_but_what_is_here_is_found() -> None:
    nobody = f"127.0.0.1:{free_udp_port()}"
    signed = service("od01")
    async with node(0, bootstrap=[nobody]) as cut_off:
        began = time.monotonic()
        with pytest.raises(Unavailable):
            await cut_off.services("id:od01")
        with pytest.raises(Unavailable):
            await cut_off.publish(signed)
        assert [s.envelope for s in await cut_off.services("id:od01")] == [signed.envelope]
        assert time.monotonic() - began < 3.0


async def test_when_all_known_nodes_died_nothing_is_falsely_missing() -> None:
    async with node(0) as survivor:
        async with node(1, bootstrap=survivor.contacts()), node(2, bootstrap=survivor.contacts()):
            await until(lambda: survivor.stats()["contacts"] == 2)
        for _ in range(3):
            with pytest.raises(Unavailable):
                await survivor.services("id:od01")


async def test_dead_bootstrap_addresses_delay_nobody() -> None:
    async with node(0) as alive:
        dead = [f"127.0.0.1:{free_udp_port()}" for _ in range(5)]
        began = time.monotonic()
        async with node(1, bootstrap=[*dead, *alive.contacts()]) as joined:
            assert joined.stats()["contacts"] == 1
            assert time.monotonic() - began < 2.0


async def test_a_node_that_starts_first_finds_its_bootstrap_node_later() -> None:
    port = free_udp_port()
    async with node(0, bootstrap=[f"127.0.0.1:{port}"]) as early, node(1, port=port):
        await until(lambda: early.stats()["contacts"] == 1)


async def test_a_node_that_comes_back_at_another_port_is_known_again(tmp_path: Path) -> None:
    async with node(0) as first:
        async with node(1, bootstrap=first.contacts()) as before:
            old = before.contacts()[0]
        async with node(1, bootstrap=first.contacts()) as after:
            await until(lambda: after.contacts()[0] in first.contacts())
            assert old not in first.contacts()


async def test_keys_can_be_rotated_while_running() -> None:
    both = Keyring(mesh="test", keys={1: KEYRING.keys[1], 2: b"2" * 32}, current=2)
    async with mesh(2) as nodes:
        nodes[0].use_keyring(both)
        nodes[1].use_keyring(both)
        await nodes[0].publish(service("od01"))
        assert len(await nodes[1].services("id:od01")) == 1


async def test_the_largest_records_travel() -> None:
    signed = service("x" * 64, description="d" * 160, category="/" + "/".join(["c" * 20] * 7), content="large")
    assert len(signed.envelope) > 600
    async with mesh(3) as nodes:
        await nodes[0].publish(signed)
        assert [s.envelope for s in await nodes[2].services("id:" + "x" * 64)] == [signed.envelope]
        assert all(n.stats().get("datagrams_too_large", 0) == 0 for n in nodes)


async def test_a_taken_port_is_named() -> None:
    async with node(0) as first:
        with pytest.raises(PortTaken, match=str(first.udp_port)):
            async with node(1, port=first.udp_port):
                raise AssertionError("listened on a taken port")


async def test_an_address_that_is_none_is_named() -> None:
    with pytest.raises(ConfigError, match="host:port"):
        async with node(0, bootstrap=["nonsense"]):
            raise AssertionError("started")


async def test_a_node_whose_disk_is_full_stays_known_to_others_says_so_once_and_stops_in_peace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = "sha256:" + "7" * 64
    with capture_logs() as logs:
        async with node(0) as first, node(1, bootstrap=first.contacts(), database=tmp_path / "state.sqlite") as full:
            await until(lambda: full.stats()["contacts"])
            fails_at(full._replica, monkeypatch)
            await full.announce_content(digest)
            await full.announce_region(region="eu/full", agents=1, memory_total=2, memory_free=1)
            assert [record.node for record in await first.providers(digest)] == [full.node]
            assert [record.node for record in await first.regions("region:eu/full")] == [full.node]
            for number in range(3):
                with pytest.raises(Unavailable):
                    await first.publish(service(f"s{number}"))
            with pytest.raises(DiskFull):
                await full.publish(service("promised"))
    events = [entry["event"] for entry in logs if entry["log_level"] in ("warning", "error")]
    of_loops = {"step-failed"}  # once for each, if its turn came meanwhile
    assert {event: events.count(event) for event in set(events) - of_loops} == {
        "announced-without-a-copy-here": 1,
        "request-not-served": 1,
        "contacts-not-remembered": 1,
    }


def fails_at(replica: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on its disk has no room."""

    def refuse(*_: object, **__: object) -> None:
        raise DiskFull("state.sqlite cannot be written: database or disk is full")

    for write in ("put", "mark_spread", "remember"):
        monkeypatch.setattr(replica.storage, write, refuse)
