"""Renewing a certificate before it ends. The answer brings the present keyring, for a node that missed a rotation."""

from __future__ import annotations

import msgspec

from bootstrap.certificates import check_issued, issue, parse_certificate
from bootstrap.enrolment import MAX_MESSAGE, RENEW_PATH, EnrolAnswer
from bootstrap.identity import Identity, renew_identity
from dht.peer_http import PeerHttp
from protocol.bounded import read_bounded
from protocol.problems import BadRequest, Unavailable

RENEW_TIMEOUT_S = 5.0


async def renew(identity: Identity, peer: PeerHttp, address: str) -> Identity:
    """The identity with a new certificate, on disk too; `address` is the founding node's listener.

    Raises Unavailable if it cannot be reached or answers nonsense, JoinRefused if it does not hold the root key.
    Contexts in use go on with the old certificate until `tls.use_renewed`.
    """
    async with peer.request("POST", address, RENEW_PATH, timeout_s=RENEW_TIMEOUT_S) as response:
        data = await read_bounded(response.content.iter_any(), MAX_MESSAGE, "the answer")
    try:
        answer = msgspec.json.decode(data, type=EnrolAnswer)
        certificate = parse_certificate(answer.certificate.encode())
        member = check_issued(certificate, identity.root)
    except (msgspec.MsgspecError, BadRequest) as error:
        raise Unavailable(f"node {address} sent no usable certificate: {error}") from None
    if certificate.public_key() != identity.certificate.public_key() or member.region != identity.region:
        raise Unavailable(f"node {address} sent a certificate of another node or region")
    if certificate.not_valid_after_utc < identity.certificate.not_valid_after_utc:
        raise Unavailable(f"node {address} sent a certificate that ends before the present one")
    if answer.keyring.mesh != identity.mesh:
        raise Unavailable(f"node {address} sent the keyring of another mesh")
    return renew_identity(identity, certificate=certificate, keyring=answer.keyring)


def renew_own(identity: Identity, *, now: float) -> Identity:
    """The founding node renews its own certificate. `identity` must hold the root key."""
    if identity.root_key is None:
        raise BadRequest("this node does not hold the root key", fix="Renew at the node that founded the mesh.")
    certificate = issue(
        identity.node_key.public_key(),
        root=identity.root,
        root_key=identity.root_key,
        region=identity.region,
        roles=identity.roles,
        now=now,
    )
    return renew_identity(identity, certificate=certificate, keyring=identity.keyring)
