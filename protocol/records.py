"""Records that live in the DHT, and the signed envelope around them.

An envelope is msgpack `[version, payload, public_key, signature]`, at most `MAX_ENVELOPE` bytes:

    version      int    1
    payload      bin    msgpack array, first element the kind ("service" | "provider" | "region")
    public_key   bin32  Ed25519
    signature    bin64  Ed25519 over SIGNATURE_CONTEXT || payload

The signature covers the payload's bytes as received, never a re-encoding. The envelope around it has one spelling only,
the shortest: otherwise anybody could make another envelope of somebody's record, of a higher rank. The owner inside the
payload is bound to the key that signed it. Who may replace what is decided in `dht.rules`.

Records are kept by the ten thousand and refer to nothing that could form a cycle: with `gc=False` the collector, during
which everything else stands still, does not walk through them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Literal

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from msgspec import Meta, Struct

from protocol.addresses import MAX_ADDRESS, WHOLE_ADDRESS
from protocol.identifiers import (
    CATEGORY,
    DIGEST,
    MAX_CATEGORY,
    MAX_TYPE_NAMES,
    NODE,
    REGION,
    SERVICE_ID,
    SERVICE_NAME,
    TYPE_NAME,
    category_ancestors,
    node_id,
    parent_region,
)
from protocol.problems import InvalidRecord
from protocol.service import Kind, ServiceDescriptor, Strategy

MAX_ENVELOPE = 1024
RECORD_VERSION = 1
SIGNATURE_CONTEXT = b"cornerstore/record/1\0"
RECORD_HEADER = "Cornerstore-Record"
"""HTTP header that carries a signed envelope in base64url, beside the archive that it announces or withdraws."""
RecordKind = Literal["service", "provider", "region"]
LIFETIME_S: Mapping[RecordKind, int] = {"service": 400 * 86_400, "provider": 3600, "region": 600}
"""The longest that a record of each kind may live, in seconds from its own date (`seq`)."""
CLOCK_SKEW_S = 300
"""How far ahead of our clock a peer's may be."""

MAX_DESCRIPTION = 160
MAX_VERSION = 32
"""Both in bytes of UTF-8: an archive may say more, its record is cut."""
MAX_LABELS = 8
MAX_VARIANTS = 16


def _reads(pattern: str, max_length: int | None = None) -> Meta:
    """Texts that match as a whole."""
    return Meta(pattern=rf"^(?:{pattern})\Z", max_length=max_length)


Digest = Annotated[str, _reads(DIGEST, max_length=71)]
NodeId = Annotated[str, _reads(NODE, max_length=40)]
Key = Annotated[bytes, Meta(min_length=32, max_length=32)]
TypeName = Annotated[str, _reads(TYPE_NAME)]
TypeNames = Annotated[tuple[TypeName, ...], Meta(max_length=MAX_TYPE_NAMES)]
LabelText = Annotated[str, Meta(min_length=1, max_length=64)]
Labels = Annotated[tuple[tuple[LabelText, LabelText], ...], Meta(max_length=MAX_LABELS)]
Address = Annotated[str, Meta(pattern=WHOLE_ADDRESS, max_length=MAX_ADDRESS)]
Addresses = Annotated[tuple[Address, ...], Meta(min_length=1, max_length=4)]
Region = Annotated[str, _reads(REGION)]
Seconds = Annotated[int, Meta(ge=0, le=2**40)]
Millis = Annotated[int, Meta(ge=0, le=2**53)]


class VariantTerms(Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """What a variant of a service promises and costs. `mem` in MB, None: as the service."""

    name: Annotated[str, Meta(min_length=1, max_length=128)]
    accuracy: Annotated[float, Meta(ge=0, le=1)] | None = None
    latency_ms: Annotated[float, Meta(ge=0)] | None = None
    mem: Annotated[int, Meta(ge=1, le=2**20)] | None = None


class Terms(Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """How a service wants to be placed: its policies `Placement` and `QoS`, and its variants, sorted by name."""

    strategy: Strategy = "spread"
    max_latency_ms: Annotated[float, Meta(gt=0)] | None = None
    min_accuracy: Annotated[float, Meta(ge=0, le=1)] | None = None
    variants: Annotated[tuple[VariantTerms, ...], Meta(max_length=MAX_VARIANTS)] = ()


class ServiceRecord(Struct, frozen=True, array_like=True, tag="service", forbid_unknown_fields=True, gc=False):
    """One published service. `seq` is the publisher's clock in ms: the highest per (publisher, id, name) counts.
    `expiry` is in Unix seconds. With `withdrawn`, a tombstone. `kind`, `labels` (those that its agent must have,
    sorted) and `terms` (None: the default ones) let a controller place it unseen."""

    digest: Digest
    id: Annotated[str, _reads(SERVICE_ID)]
    name: Annotated[str, _reads(SERVICE_NAME)]
    description: Annotated[str, Meta(max_length=MAX_DESCRIPTION)]
    category: Annotated[str, _reads(CATEGORY, max_length=MAX_CATEGORY)]
    inputs: TypeNames
    outputs: TypeNames
    size: Annotated[int, Meta(ge=0, le=2**48)]
    mem: Annotated[int, Meta(ge=1, le=2**20)]
    publisher: Key
    version: Annotated[str, Meta(max_length=MAX_VERSION)]
    seq: Millis
    expiry: Seconds
    withdrawn: bool = False
    kind: Kind = "docker_container"
    labels: Labels = ()
    terms: Terms | None = None

    @property
    def names(self) -> list[str]:
        """The record names (see `record_key`) under which the mesh keeps it."""
        return [
            f"service:{self.digest}",
            f"id:{self.id}",
            f"name:{self.name}",
            *(f"category:{c}" for c in category_ancestors(self.category)),
        ]


class ProviderRecord(Struct, frozen=True, array_like=True, tag="provider", forbid_unknown_fields=True, gc=False):
    """`node` serves chunks of the content at `addresses` (host:port of its node-to-node listener).
    With `withdrawn`, it no longer does."""

    content: Digest
    node: NodeId
    addresses: Addresses
    seq: Millis
    expiry: Seconds
    withdrawn: bool = False

    @property
    def names(self) -> list[str]:
        return [f"content:{self.content}"]


class RegionRecord(Struct, frozen=True, array_like=True, tag="region", forbid_unknown_fields=True, gc=False):
    """A controller of `region`, with a summary of what its agents could still host."""

    region: Region
    node: NodeId
    addresses: Addresses
    agents: Annotated[int, Meta(ge=0, le=2**20)]
    memory_total: Annotated[int, Meta(ge=0, le=2**40)]
    memory_free: Annotated[int, Meta(ge=0, le=2**40)]
    seq: Millis
    expiry: Seconds

    @property
    def names(self) -> list[str]:
        return [f"region:{self.region}", f"children:{parent_region(self.region)}"]


Record = ServiceRecord | ProviderRecord | RegionRecord


def kind_of(record: Record) -> RecordKind:
    match record:
        case ServiceRecord():
            return "service"
        case ProviderRecord():
            return "provider"
        case RegionRecord():
            return "region"


def is_withdrawn(record: Record) -> bool:
    """True if the record withdraws what stands in its place."""
    return not isinstance(record, RegionRecord) and record.withdrawn


class Signed(Struct, frozen=True, gc=False):
    """A record whose signature was verified, with the exact bytes that were."""

    record: Record
    public_key: bytes
    envelope: bytes


class _Envelope(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    version: int
    payload: bytes
    public_key: Key
    signature: Annotated[bytes, Meta(min_length=64, max_length=64)]


_envelope_decoder = msgspec.msgpack.Decoder(_Envelope)
_record_decoder: msgspec.msgpack.Decoder[Record] = msgspec.msgpack.Decoder(Record)


def raw_public_key(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)


def last_moment(kind: RecordKind, seq: int) -> int:
    """The latest expiry that a record of this date may have, and the only one that a tombstone has."""
    return seq // 1000 + LIFETIME_S[kind]


def check_lifetime(record: Record) -> None:
    """Raises InvalidRecord if the record could live longer than its kind allows, or a tombstone less long than that.

    A tombstone hides records of the same date and earlier. None of them outlives it then, so none can be brought back
    by who kept a copy until the tombstone was forgotten.
    """
    last = last_moment(kind_of(record), record.seq)
    if record.expiry > last:
        raise InvalidRecord(
            f"the record would end {record.expiry - last} s later than its date allows", fix="Sign it with a later seq."
        )
    if is_withdrawn(record) and record.expiry < last:
        raise InvalidRecord(
            f"the tombstone would end {last - record.expiry} s before the last record that it may hide",
            fix=f"Sign it with the expiry {last}.",
        )


def sign(record: Record, key: Ed25519PrivateKey) -> Signed:
    """Raises InvalidRecord if the record is not the key's to sign, violates a bound, or would exceed MAX_ENVELOPE."""
    payload = msgspec.msgpack.encode(record)
    public_key = raw_public_key(key)
    signature = key.sign(SIGNATURE_CONTEXT + payload)
    return verify(msgspec.msgpack.encode(_Envelope(RECORD_VERSION, payload, public_key, signature)))


def verify(envelope: bytes) -> Signed:
    """Raises InvalidRecord with the first thing that is wrong. Expiry is not judged here: it needs the time."""
    signed, outer = _unwrapped(envelope)
    _check(outer)
    return signed


def reopened(envelope: bytes) -> Signed:
    """As `verify`, but without its one slow step: for an envelope whose signature was checked before.

    Also for one whose record is only looked at to see whether a check is worth while: `check_signature`.
    """
    return _unwrapped(envelope)[0]


def check_signature(signed: Signed) -> None:
    """The slow step of `verify`, for what was `reopened`. Raises InvalidRecord."""
    _check(_envelope_decoder.decode(signed.envelope))


def _check(outer: _Envelope) -> None:
    try:
        Ed25519PublicKey.from_public_bytes(outer.public_key).verify(outer.signature, SIGNATURE_CONTEXT + outer.payload)
    except (InvalidSignature, ValueError):
        raise InvalidRecord("the signature does not match") from None


def _unwrapped(envelope: bytes) -> tuple[Signed, _Envelope]:
    if len(envelope) > MAX_ENVELOPE:
        raise InvalidRecord(f"{len(envelope)} bytes; a record has at most {MAX_ENVELOPE}")
    try:
        outer = _envelope_decoder.decode(envelope)
        if outer.version != RECORD_VERSION:
            raise InvalidRecord(f"record version {outer.version}; this node speaks {RECORD_VERSION}")
    except msgspec.MsgspecError as error:
        raise InvalidRecord(f"malformed record: {error}") from None
    if msgspec.msgpack.encode(outer) != envelope:
        raise InvalidRecord("the envelope is not in its shortest form")
    record = _decoded(outer.payload)
    if _owner(record) != (outer.public_key if isinstance(record, ServiceRecord) else node_id(outer.public_key)):
        raise InvalidRecord("the record is signed by a key that does not own it")
    return Signed(record, outer.public_key, envelope), outer


def _decoded(payload: bytes) -> Record:
    try:
        return _record_decoder.decode(payload)
    except msgspec.MsgspecError as error:
        raise InvalidRecord(f"malformed record: {error}") from None


def _owner(record: Record) -> bytes | str:
    return record.publisher if isinstance(record, ServiceRecord) else record.node


def service_record(
    descriptor: ServiceDescriptor,
    *,
    digest: str,
    size: int,
    publisher: bytes,
    seq: int,
    expiry: int,
    withdrawn: bool = False,
) -> ServiceRecord:
    """The record that announces `descriptor`; `size` in bytes, `seq` in Unix ms, `expiry` in Unix s."""
    return ServiceRecord(
        digest=digest,
        id=descriptor.id,
        name=descriptor.name,
        description=_cut(descriptor.description, MAX_DESCRIPTION),
        category=descriptor.category,
        inputs=descriptor.inputs,
        outputs=descriptor.outputs,
        size=size,
        mem=descriptor.mem_requirement,
        publisher=publisher,
        version=_cut(descriptor.version, MAX_VERSION),
        seq=seq,
        expiry=expiry,
        withdrawn=withdrawn,
        kind=descriptor.kind,
        labels=tuple(sorted(descriptor.placement.required_labels.items())),
        terms=_terms(descriptor),
    )


def _terms(descriptor: ServiceDescriptor) -> Terms | None:
    """None where the service says nothing of it: most do not, and records are kept by the ten thousand."""
    terms = Terms(
        descriptor.placement.strategy,
        descriptor.quality.max_latency_ms,
        descriptor.quality.min_accuracy,
        tuple(
            VariantTerms(name, one.accuracy, one.latency_ms, one.mem_requirement)
            for name, one in sorted(descriptor.variants.items())
        ),
    )
    return None if terms == Terms() else terms


def check_publishable(descriptor: ServiceDescriptor) -> None:
    """Raises InvalidRecord, naming the field, if no key at any time could sign a record of the service."""
    largest = service_record(
        descriptor,
        digest="sha256:" + "0" * 64,
        size=2**48,
        publisher=bytes(32),
        seq=2**53,
        expiry=2**40,
        withdrawn=True,
    )
    payload = msgspec.msgpack.encode(largest)
    try:
        _record_decoder.decode(payload)
    except msgspec.ValidationError as error:
        raise InvalidRecord(f"the service's {_field_of(error)} cannot be published: {error}") from None
    size = len(msgspec.msgpack.encode(_Envelope(RECORD_VERSION, payload, bytes(32), bytes(64))))
    if size > MAX_ENVELOPE:
        raise InvalidRecord(f"the record of the service would have {size} bytes; a record has at most {MAX_ENVELOPE}")


def _field_of(error: msgspec.ValidationError) -> str:
    """The field that msgspec names by its place in the array, whose first element is the kind."""
    place = re.search(r"`\$\[(\d+)\]", str(error))
    return ServiceRecord.__struct_fields__[int(place[1]) - 1] if place else "description"


def _cut(text: str, limit: int) -> str:
    """The beginning of `text`, at most `limit` bytes of UTF-8."""
    return text.encode()[:limit].decode(errors="ignore")
