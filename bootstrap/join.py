"""The side of an enrolment that joins: from a token to an identity on disk, within five seconds or with a reason."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import aiohttp
import msgspec
import structlog
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec import Struct

from bootstrap.certificates import check_issued, check_roles, fingerprint, parse_certificate, validity
from bootstrap.enrolment import (
    ENROL_PATH,
    MAX_MESSAGE,
    ROOT_PATH,
    EnrolAnswer,
    EnrolRequest,
    RootAnswer,
    cannot_enrol,
    check_clock,
    prove,
)
from bootstrap.identity import (
    OLD_STATE_FIX,
    Identity,
    discard_unfinished,
    has_identity,
    renew_identity,
    save_identity,
    unfinished_node_key,
)
from bootstrap.tls import joining_context, unverified_context
from bootstrap.tokens import Token, decode_token
from dht.peer_http import WRONG_PORT_FIX, PeerHttp
from protocol.bounded import read_bounded
from protocol.identifiers import node_id
from protocol.network_errors import network_cause, speaks_no_tls
from protocol.peers import Role
from protocol.problems import BadRequest, JoinRefused, Problem, TooLarge, Unavailable
from protocol.records import raw_public_key

_log = structlog.get_logger(__name__)

FIND_TIMEOUT_S = 1.8
ENROL_TIMEOUT_S = 2.8
"""Together below five seconds. Finding the enrolling node and being enrolled are bounded apart."""

_FINAL = frozenset({"expired", "spent", "token"})
"""Refusals after which no repetition with the same key can succeed."""

Answer = TypeVar("Answer", RootAnswer, EnrolAnswer)


class JoinResult(Struct, frozen=True, kw_only=True):
    """What the node's configuration needs. `bootstrap`: DHT addresses (UDP); `peers`: controllers (TCP)."""

    mesh: str
    region: str
    roles: tuple[Role, ...]
    node: str
    bootstrap: tuple[str, ...]
    peers: tuple[str, ...]


class _Found(Struct, frozen=True):
    """A node of the right mesh that answered at `address`, and the verified root."""

    address: str
    root: x509.Certificate
    answer: RootAnswer


async def join(
    token_text: str,
    *,
    data_dir: Path,
    roles: Sequence[str] | None = None,
    name: str | None = None,
    now: Callable[[], float] = time.time,
) -> JoinResult:
    """Become a member of the mesh that the token names. `roles` None: all that the invitation allows.

    A member whose certificate ended joins its own mesh again with the keys that it has.

    Raises JoinRefused with `code` expired, spent, clock, unreachable, mesh, region, state, role or token, and a fix;
    TooManyRequests if this address failed too often. `<data-dir>/identity` exists afterwards, or nothing of it does.
    """
    token = decode_token(token_text)
    lapsed = _lapsed(data_dir, token, now()) if has_identity(data_dir) else None
    asked = _asked_roles(roles)
    found = await _find(token, now)
    if now() > token.expires:
        raise JoinRefused(
            f"the invitation expired {int(now() - token.expires)} s ago",
            fix="Ask for a new one: `cornerstore bootstrap invite --ttl 1h`.",
            code="expired",
        )
    key = lapsed.node_key if lapsed is not None else unfinished_node_key(data_dir)
    request = EnrolRequest(
        invite=token.invite,
        secret=token.secret,
        public_key=raw_public_key(key),
        proof=prove(key, root=found.root, invite=token.invite, secret=token.secret),
        roles=asked,
        name=(name or socket.gethostname())[:64],
        now=now(),
    )
    answer = await _enrol(found, request, data_dir)
    identity = _keep(token, found.root, key, answer, data_dir, lapsed)
    _log.info("mesh-joined", mesh=identity.mesh, region=identity.region, node=identity.node)
    return JoinResult(
        mesh=identity.mesh,
        region=identity.region,
        roles=identity.roles,
        node=identity.node,
        bootstrap=answer.bootstrap,
        peers=answer.peers,
    )


def _lapsed(data_dir: Path, token: Token, now: float) -> Identity:
    """The identity of a member of the token's mesh whose certificate ended. Raises JoinRefused if it is another."""
    held = Identity.load(data_dir)
    until = validity(held.certificate)[1]
    if fingerprint(held.root) != token.fingerprint or now < until or held.root_key is not None:
        raise JoinRefused(f"{data_dir} holds the identity of a node already", fix=OLD_STATE_FIX, code="state")
    return held


def _asked_roles(roles: Sequence[str] | None) -> tuple[Role, ...] | None:
    if roles is None:
        return None
    try:
        return check_roles(roles)
    except BadRequest as error:
        raise JoinRefused(error.detail, fix=error.fix, code="role") from None


async def _find(token: Token, now: Callable[[], float]) -> _Found:
    """The first node that shows the token's root and can enrol; all addresses are asked at once."""
    refusals: list[JoinRefused] = []
    tasks = [asyncio.create_task(_ask_root(address, token, now)) for address in token.addresses]
    try:
        for next_answer in asyncio.as_completed(tasks):
            try:
                return await next_answer
            except JoinRefused as refusal:
                refusals.append(refusal)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    raise _most_telling(refusals)


def _most_telling(refusals: Sequence[JoinRefused]) -> JoinRefused:
    """Why no address would do: a node that answered tells more than one that did not."""
    answered = [r for r in refusals if r.extra["code"] != "unreachable" or "founder" in r.extra]
    if answered:
        return answered[0]
    return JoinRefused("; ".join(r.detail for r in refusals), fix=refusals[0].fix, code="unreachable")


async def _ask_root(address: str, token: Token, now: Callable[[], float]) -> _Found:
    """Fetch the root from a stranger, and believe nothing that the token's fingerprint does not prove."""
    try:
        async with _peer(unverified_context()) as peer:
            answer = await _call(peer, "GET", address, ROOT_PATH, RootAnswer, FIND_TIMEOUT_S)
        root = parse_certificate(answer.root.encode())
    except (Problem, ValueError) as error:
        raise _unreachable(f"no enrolling node answers at {address}: {_why(error)}", error) from error
    if fingerprint(root) != token.fingerprint:
        raise JoinRefused(
            f"the node at {address} belongs to another mesh than the token",
            fix=f"Check the address with the operator of mesh {token.mesh}; then ask for a new token.",
            code="mesh",
        )
    check_clock(joiner=now(), mesh=answer.now)
    if not answer.enrols:
        raise cannot_enrol(answer.founder, f"the node at {address}")
    return _Found(address, root, answer)


async def _enrol(found: _Found, request: EnrolRequest, data_dir: Path) -> EnrolAnswer:
    """Over a connection that the root vouches for. The node key is kept while the token may still be worth something:
    an earlier try may have been granted, and its answer lost on the way back."""
    body = msgspec.json.encode(request)
    try:
        async with _peer(joining_context(found.root)) as peer:
            return await _call(peer, "POST", found.address, ENROL_PATH, EnrolAnswer, ENROL_TIMEOUT_S, body)
    except JoinRefused as refusal:
        if refusal.extra.get("code") in _FINAL:
            discard_unfinished(data_dir)
        raise
    except (Unavailable, TooLarge, BadRequest) as error:
        raise _unreachable(f"the node at {found.address} did not enrol this machine: {_why(error)}", error) from error


def _keep(
    token: Token,
    root: x509.Certificate,
    key: Ed25519PrivateKey,
    answer: EnrolAnswer,
    data_dir: Path,
    lapsed: Identity | None,
) -> Identity:
    try:
        certificate = parse_certificate(answer.certificate.encode())
        member = check_issued(certificate, root)
    except BadRequest as error:
        raise _not_ours(error.detail) from error
    if (member.node, member.mesh, member.region) != (node_id(raw_public_key(key)), token.mesh, token.region):
        raise _not_ours("it is for another node, mesh or region")
    if answer.keyring.mesh != token.mesh:
        raise _not_ours("the keyring beside it is of another mesh")
    if lapsed is not None:
        return renew_identity(lapsed, certificate=certificate, keyring=answer.keyring)
    return save_identity(data_dir, key=key, certificate=certificate, root=root, keyring=answer.keyring)


@asynccontextmanager
async def _peer(tls: ssl.SSLContext) -> AsyncIterator[PeerHttp]:
    async with aiohttp.ClientSession(trust_env=False) as session:
        yield PeerHttp(session, tls)


async def _call(
    peer: PeerHttp,
    method: str,
    address: str,
    path: str,
    kind: type[Answer],
    timeout_s: float,
    body: bytes | None = None,
) -> Answer:
    """The decoded answer. Raises the node's Problem, or Unavailable for silence and nonsense."""
    headers = {"Content-Type": "application/json"}
    async with peer.request(method, address, path, timeout_s=timeout_s, data=body, headers=headers) as response:
        data = await read_bounded(response.content.iter_any(), MAX_MESSAGE, "the answer")
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.MsgspecError as error:
        raise Unavailable(f"node {address} answered something else than Cornerstore does: {error}") from None


def _why(error: Exception) -> str:
    """What kept the connection from working, if that is it; the address is named already."""
    return network_cause(error.__cause__) if error.__cause__ is not None else str(error)


def _unreachable(detail: str, error: Exception) -> JoinRefused:
    return JoinRefused(
        detail,
        fix=WRONG_PORT_FIX
        if speaks_no_tls(error.__cause__)
        else "Check that the inviting node is up (`cornerstore status` there) and that no firewall blocks the port; "
        "then join again with the same token.",
        code="unreachable",
    )


def _not_ours(detail: str) -> JoinRefused:
    return JoinRefused(
        f"the certificate received cannot be used: {detail}",
        fix="Ask the operator of the mesh for a new invitation.",
        code="mesh",
    )
