"""The messages of an enrolment: JSON over HTTPS. Byte strings travel as base64 (RFC 4648 section 4).

GET  /bootstrap/root    -> RootAnswer     needs nothing; tells nothing that a certificate would not
POST /bootstrap/enrol   EnrolRequest -> EnrolAnswer
"""

from __future__ import annotations

from typing import Annotated

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from msgspec import Meta, Struct

from bootstrap.certificates import fingerprint
from bootstrap.tokens import InviteId, Secret
from dht.overlay.sealing import Keyring
from protocol.peers import Role
from protocol.problems import BadRequest, JoinRefused
from protocol.records import Address, Key, NodeId

ROOT_PATH = "/bootstrap/root"
ENROL_PATH = "/bootstrap/enrol"
RENEW_PATH = "/bootstrap/renew"
ENROL_PATHS = frozenset({ROOT_PATH, ENROL_PATH})
"""The only paths that a node-to-node listener answers without a client certificate."""

MAX_MESSAGE = 32 << 10
MAX_SKEW_S = 300.0
_PROOF_CONTEXT = b"cornerstore/enrol/1\0"

Pem = Annotated[str, Meta(max_length=8192)]
Addresses = Annotated[tuple[Address, ...], Meta(max_length=32)]


class RootAnswer(Struct, frozen=True, kw_only=True):
    """`enrols`: whether this node can admit others; if not, `founder` can. `now` in Unix s by this node's clock."""

    root: Pem
    mesh: str
    founder: str
    enrols: bool
    now: float


class EnrolRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`proof`: see `prove`. `roles` None: all that the invitation allows. `now`: the joiner's clock, Unix s."""

    invite: InviteId
    secret: Secret
    public_key: Key
    proof: Annotated[bytes, Meta(min_length=64, max_length=64)]
    roles: Annotated[tuple[Role, ...], Meta(min_length=1, max_length=3)] | None
    name: Annotated[str, Meta(max_length=64)]
    now: float

    def __repr__(self) -> str:
        """Without the secret: a request may end up in a log."""
        return f"EnrolRequest(invite={self.invite.hex()}, name={self.name!r}, roles={self.roles})"


class EnrolAnswer(Struct, frozen=True, kw_only=True):
    """`bootstrap`: DHT addresses (UDP). `peers`: node-to-node addresses of controllers (TCP)."""

    certificate: Pem
    node: NodeId
    keyring: Keyring
    bootstrap: Addresses
    peers: Addresses

    def __repr__(self) -> str:
        return f"EnrolAnswer(node={self.node!r})"


def prove(key: Ed25519PrivateKey, *, root: x509.Certificate, invite: bytes, secret: bytes) -> bytes:
    """The signature that shows possession of the node key, valid for this mesh and this invitation only."""
    return key.sign(_claim(root, invite, secret))


def check_proof(request: EnrolRequest, root: x509.Certificate) -> Ed25519PublicKey:
    """The joiner's public key. Raises BadRequest unless its owner sent the request."""
    try:
        public_key = Ed25519PublicKey.from_public_bytes(request.public_key)
        public_key.verify(request.proof, _claim(root, request.invite, request.secret))
    except (InvalidSignature, ValueError):
        raise BadRequest("the request does not prove possession of the node key") from None
    return public_key


def check_clock(*, joiner: float, mesh: float) -> None:
    """Raises JoinRefused (code `clock`) if the two clocks differ by more than MAX_SKEW_S."""
    ahead = joiner - mesh
    if abs(ahead) > MAX_SKEW_S:
        side = "ahead of" if ahead > 0 else "behind"
        raise JoinRefused(
            f"this machine's clock is {abs(ahead):.0f} s {side} the mesh's; at most {MAX_SKEW_S:.0f} s are accepted",
            fix="Set the clock (for instance: timedatectl set-ntp true), then join again with the same token.",
            code="clock",
        )


def cannot_enrol(founder: str, who: str = "this node") -> JoinRefused:
    return JoinRefused(
        f"{who} does not hold the root key of the mesh; node {founder} does",
        fix=f"Ask the operator of node {founder} for an invitation that carries its address.",
        code="unreachable",
        founder=founder,
    )


def _claim(root: x509.Certificate, invite: bytes, secret: bytes) -> bytes:
    """Context, root fingerprint (32 bytes), invitation (8), secret (20)."""
    return _PROOF_CONTEXT + fingerprint(root) + invite + secret
