"""Whatever bytes a datagram carries, decoding neither raises nor lets a malformed field through."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from dht.overlay import messages
from dht.overlay.datagrams import Address
from dht.overlay.sealing import Keyring, Sealer

scalars = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.binary(max_size=40) | st.text(max_size=8)
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=4), max_leaves=12)
bodies = st.tuples(st.integers(-1, 20), st.binary(min_size=8, max_size=8), st.binary(min_size=20, max_size=20))


@given(st.binary(max_size=1300))
def test_garbage_neither_opens_nor_raises(data: bytes) -> None:
    assert Sealer(Keyring(mesh="m", keys={1: b"k" * 32}, current=1)).open(data) is None
    assert messages.decode(data) is None or msgspec.msgpack.decode(data)


@given(bodies, st.lists(values, max_size=6))
def test_malformed_fields_are_no_message(head: tuple[int, bytes, bytes], rest: list[object]) -> None:
    message = messages.decode(msgspec.msgpack.encode([*head, *rest]))
    if message is not None:
        assert len(message.id) == 8
        assert len(message.sender) == 20
        assert msgspec.msgpack.decode(messages.encode(message)) == [*head, *rest]


@given(st.binary(min_size=20, max_size=20), st.ip_addresses(), st.integers(1, 65535))
def test_contacts_come_back_as_they_went(node: bytes, ip: object, port: int) -> None:
    contact = messages.wire_contact(node, Address(str(ip), port))
    nodes = messages.Nodes(b"i" * 8, b"s" * 20, None, (contact,))
    assert messages.decode(messages.encode(nodes)) == nodes
    assert contact.address == Address(str(ip), port)
