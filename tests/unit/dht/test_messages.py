from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dht.ordering import LISTED_WITH_CONTACTS, SHORT_BYTES
from dht.overlay import messages
from dht.overlay.datagrams import Address
from dht.overlay.messages import Answer, Nodes, Page, Parts, Proof, wire_contact
from dht.overlay.sealing import MAX_PLAINTEXT
from protocol.admission import Credentials
from protocol.identifiers import node_id
from protocol.records import raw_public_key
from tests.dht_mesh import ROOT, credentials, identity

NOW = 1_800_000_000.0
ASKER = b"a" * 20
ID = b"i" * 8


def id_of(key: Ed25519PrivateKey) -> bytes:
    return bytes.fromhex(node_id(raw_public_key(key)))


def proof_of(shown: Credentials) -> Proof:
    return messages.prove(shown, mesh="test", message=ID, asker=ASKER, answerer=id_of(shown.key))


def believed(proof: Proof | None, answerer: bytes) -> bool:
    root = raw_public_key(ROOT)
    return messages.proven(proof, root=root, now=NOW, mesh="test", message=ID, asker=ASKER, answerer=answerer)


def test_a_member_proves_its_node_id() -> None:
    member = credentials(identity(1))
    assert believed(proof_of(member), id_of(member.key))


@pytest.mark.parametrize(
    "shown",
    [
        credentials(identity(1), root=identity(1)),
        credentials(identity(1), until=int(NOW)),
        Credentials(identity(1), credentials(identity(2)).admission, raw_public_key(ROOT)),
    ],
    ids=["a key made up", "a certificate that ended", "the admission of another member"],
)
def test_an_id_without_a_certificate_is_nobodys(shown: Credentials) -> None:
    assert not believed(proof_of(shown), id_of(shown.key))


def test_a_proof_is_for_one_question_of_one_asker() -> None:
    member = credentials(identity(1))
    other = messages.prove(member, mesh="test", message=b"j" * 8, asker=ASKER, answerer=id_of(member.key))
    assert not believed(other, id_of(member.key))
    assert not believed(proof_of(member), id_of(identity(2)))
    assert not believed(None, id_of(member.key))


def test_the_longest_answers_fit_with_a_proof() -> None:
    contact = wire_contact(ASKER, Address("2001:db8:ffff:ffff:ffff:ffff:ffff:ffff", 65535))
    proof = proof_of(credentials(identity(1)))
    parts = bytes(SHORT_BYTES * LISTED_WITH_CONTACTS)
    longest: list[Answer] = [
        Nodes(ID, ASKER, proof, (contact,) * 20),
        Page(ID, ASKER, proof, (contact,) * 8, (), b"c" * 8, b"f" * 8, 500_000, 65535),
        Parts(ID, ASKER, proof, (contact,) * 8, b"f" * 8, parts, b"", 500_000, 65535),
        Parts(ID, ASKER, proof, (contact,) * 8, b"f" * 8, b"", parts, 96, 65535),
    ]
    for answer in longest:
        assert messages.decode(messages.encode(answer)) == answer
        assert len(messages.encode(answer)) <= MAX_PLAINTEXT
