"""What travels inside sealed datagrams: msgpack arrays, the first element an integer tag.

    request                                  answer
    0 ping    [id, sender, prove]            16 pong   [id, sender, proof]
    1 find    [id, sender, prove, key]       17 nodes  [id, sender, proof, contacts]
    2 records [id, sender, prove, key,       18 page   [id, sender, proof, contacts, envelopes,
               cursor]                                  next cursor, fingerprint, count, door]
    3 store   [id, sender, prove, key,       19 stored [id, sender, proof, verdicts]
               envelopes]
    4 compare [id, sender, prove, key,       20 parts  [id, sender, proof, contacts, fingerprint,
               low, high]                               parts, positions, count, door]

`id` 8 random bytes, the same in the answer; `sender` and `key` 20 bytes; a contact is `[node id, packed IP, port]`.
`prove` asks for a proof: the answer then carries `[public key, signature, admission]`. The signature is over
PROOF_CONTEXT || mesh name || 0 || request id || asker's node id || answerer's node id; the node id is the hash of that
public key; and the admission (`protocol.admission`) is the mesh root's word that this key is a member's. An asker
believes an address to be a node's only after such a proof, so there are no more node ids than certificates.
`cursor` nil asks for the first page and for contacts nearer to the key; bytes ask for what follows. `low` and `high`
bound a range of positions: see `dht.ordering.Summary`; the range of all positions is answered with contacts too.
`count` is how many envelopes the answerer holds at the key; `door` the TCP port, at the same host, where the whole set
can be had over HTTP (0: none).
"""

from __future__ import annotations

from functools import lru_cache
from ipaddress import ip_address
from typing import Annotated, TypeVar

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from msgspec import Meta, Struct

from dht.ordering import LISTED, PARTS, POSITION_BYTES, SHORT_BYTES
from dht.overlay.datagrams import Address
from protocol.admission import Admission, Credentials, is_admitted
from protocol.identifiers import KEY_BYTES, node_id
from protocol.records import MAX_ENVELOPE, raw_public_key

PROOF_CONTEXT = b"cornerstore/hello/1\0"
MESSAGE_ID_BYTES = 8

MessageId = Annotated[bytes, Meta(min_length=MESSAGE_ID_BYTES, max_length=MESSAGE_ID_BYTES)]
Key = Annotated[bytes, Meta(min_length=KEY_BYTES, max_length=KEY_BYTES)]
Cursor = Annotated[bytes, Meta(max_length=POSITION_BYTES)]
Fingerprint = Annotated[bytes, Meta(min_length=POSITION_BYTES, max_length=POSITION_BYTES)]
Position = Annotated[int, Meta(ge=0)]
Door = Annotated[int, Meta(ge=0, le=65535)]
Count = Annotated[int, Meta(ge=0, le=2**32)]
Shorts = Annotated[bytes, Meta(max_length=LISTED * SHORT_BYTES)]
Envelopes = Annotated[tuple[Annotated[bytes, Meta(max_length=MAX_ENVELOPE)], ...], Meta(max_length=64)]


class Proof(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    public_key: Annotated[bytes, Meta(min_length=32, max_length=32)]
    signature: Annotated[bytes, Meta(min_length=64, max_length=64)]
    admission: Admission


@lru_cache(maxsize=8192)
def _unpacked(ip: bytes) -> str:
    return str(ip_address(ip))


@lru_cache(maxsize=8192)
def _packed(host: str) -> bytes:
    return ip_address(host).packed


class WireContact(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    node: Key
    ip: Annotated[bytes, Meta(min_length=4, max_length=16)]
    port: Annotated[int, Meta(ge=1, le=65535)]

    @property
    def address(self) -> Address | None:
        """None for bytes that are no IP address."""
        return Address(_unpacked(self.ip), self.port) if len(self.ip) in (4, 16) else None


Contacts = Annotated[tuple[WireContact, ...], Meta(max_length=32)]


@lru_cache(maxsize=8192)
def wire_contact(node: bytes, address: Address) -> WireContact:
    return WireContact(node, _packed(address.host), address.port)


class Request(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    id: MessageId
    sender: Key
    prove: bool


class Ping(Request, frozen=True, tag=0):
    pass


class Find(Request, frozen=True, tag=1):
    key: Key


class Records(Request, frozen=True, tag=2):
    key: Key
    cursor: Cursor | None


class Store(Request, frozen=True, tag=3):
    key: Key
    envelopes: Envelopes


class Compare(Request, frozen=True, tag=4):
    key: Key
    low: Position
    high: Position


class Answer(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    id: MessageId
    sender: Key
    proof: Proof | None


class Pong(Answer, frozen=True, tag=16):
    pass


class Nodes(Answer, frozen=True, tag=17):
    contacts: Contacts


class Page(Answer, frozen=True, tag=18):
    contacts: Contacts
    envelopes: Envelopes
    next: Cursor | None
    fingerprint: Fingerprint
    count: Count
    door: Door


class Stored(Answer, frozen=True, tag=19):
    verdicts: Annotated[tuple[Annotated[int, Meta(ge=0, le=255)], ...], Meta(max_length=64)]


class Parts(Answer, frozen=True, tag=20):
    contacts: Contacts
    fingerprint: Fingerprint
    parts: Shorts
    positions: Shorts
    count: Count
    door: Door

    def __post_init__(self) -> None:
        """A set is told in one of two ways; what is neither is no message."""
        if self.parts and (self.positions or len(self.parts) != PARTS * SHORT_BYTES):
            raise ValueError("a set is told in PARTS fingerprints or in positions")
        if len(self.positions) % SHORT_BYTES:
            raise ValueError("positions are SHORT_BYTES long")


AnyRequest = Ping | Find | Records | Store | Compare
AnyAnswer = Pong | Nodes | Page | Stored | Parts
A = TypeVar("A", Pong, Nodes, Page, Stored, Parts)

_decoder: msgspec.msgpack.Decoder[AnyRequest | AnyAnswer] = msgspec.msgpack.Decoder(AnyRequest | AnyAnswer)
encode = msgspec.msgpack.encode


def decode(plaintext: bytes) -> AnyRequest | AnyAnswer | None:
    """None for anything but a well-formed message."""
    try:
        return _decoder.decode(plaintext)
    except msgspec.MsgspecError:
        return None


def prove(credentials: Credentials, *, mesh: str, message: bytes, asker: bytes, answerer: bytes) -> Proof:
    signature = credentials.key.sign(_claim(mesh, message, asker, answerer))
    return Proof(raw_public_key(credentials.key), signature, credentials.admission)


def proven(
    proof: Proof | None, *, root: bytes, now: float, mesh: str, message: bytes, asker: bytes, answerer: bytes
) -> bool:
    """True if the answerer holds the key of its node id, as it shows for this request, and is a member by the word of
    `root` at `now` (Unix s)."""
    if proof is None or bytes.fromhex(node_id(proof.public_key)) != answerer or proof.admission.until <= now:
        return False
    if not is_admitted(proof.admission, root=root, public_key=proof.public_key):
        return False
    try:
        Ed25519PublicKey.from_public_bytes(proof.public_key).verify(
            proof.signature, _claim(mesh, message, asker, answerer)
        )
    except (InvalidSignature, ValueError):
        return False
    return True


def _claim(mesh: str, message: bytes, asker: bytes, answerer: bytes) -> bytes:
    return PROOF_CONTEXT + mesh.encode() + b"\0" + message + asker + answerer
