"""X.509 in the mesh: one root per mesh, one leaf per node. All keys are Ed25519.

A leaf carries who the node is as URIs in its subject alternative name:

    cornerstore:node:<node id>        hash of the certificate's own public key
    cornerstore:mesh:<name>
    cornerstore:region:<path>         the region it was admitted to
    cornerstore:role:<role>           once per role it may play

and, in an extension of its own, what the node shows where a certificate is too long: the root's signature of its
admission (`protocol.admission`), which ends with the certificate.

The root carries `cornerstore:mesh:<name>` and `cornerstore:node:<id>` of the node that founded the mesh, so that every
member can say which node is able to enrol others.
"""

from __future__ import annotations

import hashlib
import math
import ssl
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from protocol.admission import Admission, admit, is_admitted
from protocol.identifiers import check_mesh_name, check_region, node_id
from protocol.peers import ROLES, PeerIdentity, Role
from protocol.problems import BadRequest

URI_PREFIX = "cornerstore:"
ADMISSION = x509.ObjectIdentifier("2.25.13733207469015765974687341835362915250")
"""Made of a UUID, as ITU-T X.667 allows: such a number needs no registration. Its value is an OCTET STRING."""
_OCTETS = b"\x04\x40"
"""Tag and length of 64 bytes in DER."""
LEAF_VALIDITY_S = 90 * 86_400
ROOT_VALIDITY_S = 10 * 365 * 86_400
BACKDATE_S = 300
"""Certificates begin this long before they are made, so that a clock slightly behind accepts them."""


def check_roles(roles: Sequence[str]) -> tuple[Role, ...]:
    """The roles in their fixed order, each once. Raises BadRequest for an unknown role or none at all."""
    unknown = sorted(set(roles) - set(ROLES))
    if unknown or not roles:
        raise BadRequest(
            f"{', '.join(unknown)[:80]!r} is not a role" if unknown else "a node needs at least one role",
            fix=f"Choose among {', '.join(ROLES)}.",
        )
    return tuple(role for role in ROLES if role in roles)


def make_root(key: Ed25519PrivateKey, *, mesh: str, founder: str, now: float) -> x509.Certificate:
    """The self-signed root of a mesh. It signs leaves only (path length 0)."""
    uris = [f"{URI_PREFIX}mesh:{check_mesh_name(mesh)}", f"{URI_PREFIX}node:{founder}"]
    name = _name(f"cornerstore mesh {mesh}")
    return (
        _builder(name, name, key.public_key(), key.public_key(), uris, now, now + ROOT_VALIDITY_S)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .sign(key, None)
    )


def issue(
    public_key: Ed25519PublicKey,
    *,
    root: x509.Certificate,
    root_key: Ed25519PrivateKey,
    region: str,
    roles: Sequence[str],
    now: float,
    validity_s: float = LEAF_VALIDITY_S,
) -> x509.Certificate:
    """A node's certificate for exactly this region and these roles; it never outlives the root."""
    node = node_id(raw(public_key))
    uris = [
        f"{URI_PREFIX}node:{node}",
        f"{URI_PREFIX}mesh:{mesh_of(root)}",
        f"{URI_PREFIX}region:{check_region(region)}",
        *(f"{URI_PREFIX}role:{role}" for role in check_roles(roles)),
    ]
    expires = int(min(now + validity_s, root.not_valid_after_utc.timestamp()))
    admission = admit(root_key, raw(public_key), expires)
    usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
    return (
        _builder(_name(node), root.subject, public_key, root_key.public_key(), uris, now, expires)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(usage, critical=False)
        .add_extension(x509.UnrecognizedExtension(ADMISSION, _OCTETS + admission.signature), critical=False)
        .sign(root_key, None)
    )


def renewal_due(certificate: x509.Certificate, now: float) -> bool:
    """True in the last third of the certificate's life: a month is left to reach the founding node."""
    begins, ends = validity(certificate)
    return now > begins + (ends - begins) * 2 / 3


def validity(certificate: x509.Certificate) -> tuple[float, float]:
    """From when until when it is good, Unix s."""
    return certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp()


def parse_certificate(data: bytes) -> x509.Certificate:
    """A certificate from PEM. Raises BadRequest if it is malformed or not of an Ed25519 key."""
    try:
        certificate = x509.load_pem_x509_certificate(data)
        ed25519_key(certificate)
    except ValueError as error:
        raise BadRequest(f"not a certificate: {error}") from None
    return certificate


def pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.PEM)


def fingerprint(certificate: x509.Certificate) -> bytes:
    """SHA-256 of the DER bytes: 32 bytes, as `openssl x509 -fingerprint -sha256` prints them."""
    return hashlib.sha256(certificate.public_bytes(Encoding.DER)).digest()


def mesh_mark(root: x509.Certificate) -> str:
    """The first 16 hex digits of the root's fingerprint, which tell meshes of one name apart where 64 do not fit."""
    return fingerprint(root).hex()[:16]


def raw(public_key: Ed25519PublicKey) -> bytes:
    """The 32 bytes of which `protocol.identifiers.node_id` is the hash."""
    return public_key.public_bytes(Encoding.Raw, PublicFormat.Raw)


def ed25519_key(certificate: x509.Certificate) -> Ed25519PublicKey:
    """Raises BadRequest if the certificate belongs to another kind of key."""
    key = certificate.public_key()
    if not isinstance(key, Ed25519PublicKey):
        raise BadRequest("the certificate's key is not Ed25519")
    return key


def mesh_of(root: x509.Certificate) -> str:
    """The mesh that a root certificate stands for. Raises BadRequest if it names none."""
    return check_mesh_name(_only(_uris(root), "mesh"))


def founder_of(root: x509.Certificate) -> str:
    """The node that holds the root key of the mesh and can enrol others."""
    return _only(_uris(root), "node")


def identity_of(certificate: x509.Certificate) -> PeerIdentity:
    """Who a leaf says its holder is. Raises BadRequest unless it is well formed and names its own key's node id."""
    uris = _uris(certificate)
    node = node_id(raw(ed25519_key(certificate)))
    if _only(uris, "node") != node:
        raise BadRequest("the certificate names another node than its key belongs to")
    return PeerIdentity(
        node=node,
        mesh=check_mesh_name(_only(uris, "mesh")),
        region=check_region(_only(uris, "region")),
        roles=check_roles([value for kind, value in uris if kind == "role"]),
    )


def check_issued(certificate: x509.Certificate, root: x509.Certificate) -> PeerIdentity:
    """The leaf's identity. Raises BadRequest unless `root` signed it. Validity in time is left to TLS."""
    try:
        certificate.verify_directly_issued_by(root)
    except (InvalidSignature, ValueError, TypeError):
        raise BadRequest("the certificate was not issued by this mesh's root") from None
    return identity_of(certificate)


def admission_of(certificate: x509.Certificate, root: x509.Certificate) -> Admission:
    """What a leaf's holder shows to other nodes in datagrams. Raises BadRequest if there is none by `root`."""
    try:
        value = certificate.extensions.get_extension_for_oid(ADMISSION).value
    except (x509.ExtensionNotFound, ValueError):
        raise BadRequest("the certificate carries no admission: it was issued by an older version") from None
    public = value.public_bytes()
    admission = Admission(int(certificate.not_valid_after_utc.timestamp()), public.removeprefix(_OCTETS))
    if not is_admitted(admission, root=raw(ed25519_key(root)), public_key=raw(ed25519_key(certificate))):
        raise BadRequest("the admission in the certificate is not signed by this mesh's root")
    return admission


def peer_identity(connection: ssl.SSLObject | ssl.SSLSocket | None) -> PeerIdentity | None:
    """The mesh member at the other end of a TLS connection, or None if there is none.

    None also for plain connections, for contexts that do not verify (there a certificate proves nothing), and once the
    certificate has ended: TLS looks at that only when a connection begins. With aiohttp:
    `peer_identity(request.transport.get_extra_info("ssl_object"))`.
    """
    der = _verified_der(connection)
    held = _held_in(der) if der else None
    return held.identity if held is not None and time.time() < held.ends else None


def peer_until(connection: ssl.SSLObject | ssl.SSLSocket | None) -> float:
    """When the certificate at the other end ends, Unix s; for ever where `peer_identity` knows of none."""
    der = _verified_der(connection)
    held = _held_in(der) if der else None
    return math.inf if held is None else held.ends


def peer_public_key(connection: ssl.SSLObject | ssl.SSLSocket | None) -> Ed25519PublicKey | None:
    """The key of the member at the other end, under the same conditions as `peer_identity`."""
    der = _verified_der(connection)
    if der is None or peer_identity(connection) is None:
        return None
    return ed25519_key(x509.load_der_x509_certificate(der))


def _verified_der(connection: ssl.SSLObject | ssl.SSLSocket | None) -> bytes | None:
    if connection is None or connection.context.verify_mode == ssl.CERT_NONE:
        return None
    return connection.getpeercert(binary_form=True)


class _Held(NamedTuple):
    """What a certificate says, and when it ends (Unix s)."""

    identity: PeerIdentity
    ends: float


@lru_cache(maxsize=1024)
def _held_in(der: bytes) -> _Held | None:
    """Parsing costs more than the rest of a short request; connections live for many requests."""
    try:
        certificate = x509.load_der_x509_certificate(der)
        return _Held(identity_of(certificate), validity(certificate)[1])
    except (BadRequest, ValueError):
        return None


def _uris(certificate: x509.Certificate) -> list[tuple[str, str]]:
    """`(kind, value)` of each `cornerstore:<kind>:<value>` in the subject alternative name."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        raise BadRequest("the certificate has no names of a mesh") from None
    found = []
    for uri in names.get_values_for_type(x509.UniformResourceIdentifier):
        if uri.startswith(URI_PREFIX):
            kind, _, value = uri.removeprefix(URI_PREFIX).partition(":")
            found.append((kind, value))
    return found


def _only(uris: list[tuple[str, str]], kind: str) -> str:
    values = [value for k, value in uris if k == kind]
    if len(values) != 1:
        raise BadRequest(f"the certificate names {len(values)} values for {kind!r}; exactly one is valid")
    return values[0]


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public_key: Ed25519PublicKey,
    issuer_key: Ed25519PublicKey,
    uris: list[str],
    now: float,
    expires: float,
) -> x509.CertificateBuilder:
    names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri) for uri in uris])
    begins = datetime.fromtimestamp(int(now), UTC) - timedelta(seconds=BACKDATE_S)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(datetime.fromtimestamp(int(expires), UTC))
        .add_extension(names, critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key), critical=False)
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
