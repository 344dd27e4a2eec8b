"""The side of an enrolment that admits: checks an invitation and issues a certificate."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import structlog
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from msgspec import Struct

from bootstrap.attempts import FailedAttempts
from bootstrap.certificates import founder_of, issue, peer_identity, peer_public_key, pem
from bootstrap.enrolment import (
    ENROL_PATH,
    MAX_MESSAGE,
    RENEW_PATH,
    ROOT_PATH,
    EnrolAnswer,
    EnrolRequest,
    RootAnswer,
    cannot_enrol,
    check_clock,
    check_proof,
)
from bootstrap.identity import Identity
from bootstrap.invites import Invite, InviteStore, choose_roles
from dht.peer_http import read_in_time
from protocol.identifiers import node_id
from protocol.problems import BadRequest, JoinRefused, KeyNeeded, Unavailable

_log = structlog.get_logger(__name__)

BODY_TIMEOUT_S = 3.0
REGION_TIMEOUT_S = 2.0

RegionHolder = Callable[[str], Awaitable[str | None]]
"""The node id of the controller that a region has by now, or None. May raise Unavailable."""


class Contacts(Struct, frozen=True):
    """What a new member should know: DHT addresses (UDP), and node-to-node addresses of controllers (TCP)."""

    bootstrap: tuple[str, ...]
    peers: tuple[str, ...]


class Enroller:
    """Admits machines that hold a valid invitation. Only a node with the root key can; others say which node can."""

    def __init__(
        self,
        identity: Identity,
        *,
        data_dir: Path,
        contacts: Callable[[], Contacts],
        region_holder: RegionHolder,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._identity = identity
        self._invites = InviteStore(data_dir)
        self._contacts = contacts
        self._region_holder = region_holder
        self._now = now
        self._attempts = FailedAttempts()

    def root(self) -> RootAnswer:
        identity = self._identity
        return RootAnswer(
            root=pem(identity.root).decode(),
            mesh=identity.mesh,
            founder=founder_of(identity.root),
            enrols=identity.root_key is not None,
            now=self._now(),
        )

    async def enrol(self, request: EnrolRequest, *, remote: str) -> EnrolAnswer:
        """Admit the sender, or raise JoinRefused, TooManyRequests, BadRequest. `remote`: its IP address.

        A repetition by the same key gets the same certificate while the invitation lasts.
        """
        root_key = self._identity.root_key
        if root_key is None:
            raise cannot_enrol(founder_of(self._identity.root))
        now = self._now()
        self._attempts.check(remote, now)
        check_clock(joiner=request.now, mesh=now)
        public_key = check_proof(request, self._identity.root)
        node = node_id(request.public_key)
        try:
            invite = await asyncio.to_thread(self._invites.look, request.invite, request.secret, node=node, now=now)
            roles = choose_roles(invite, request.roles)
        except JoinRefused as refusal:
            if refusal.extra.get("code") == "token":
                self._attempts.failed(remote, now)
            _log.info("enrolment-refused", remote=remote, invite=request.invite.hex(), code=refusal.extra.get("code"))
            raise
        if "controller" in roles:
            await self._check_region_free(invite.region, node)

        certificate = await asyncio.to_thread(
            self._invites.spend,
            request.invite,
            request.secret,
            node=node,
            now=now,
            issue=lambda invite: self._certify(public_key, root_key, invite, request, now),
        )
        _log.info("node-enrolled", node=node, name=request.name, region=invite.region, invite=request.invite.hex())
        return self._answer(certificate, node)

    def renew(self, connection: ssl.SSLObject | ssl.SSLSocket | None) -> EnrolAnswer:
        """A new certificate for the member at the other end: same key, region and roles; and the present keyring.

        Raises KeyNeeded for a stranger, JoinRefused on a node without the root key.
        """
        member = peer_identity(connection)
        public_key = peer_public_key(connection)
        if member is None or public_key is None:
            raise KeyNeeded("only a member of the mesh can renew its certificate", fix="Join the mesh first.")
        root_key = self._identity.root_key
        if root_key is None:
            raise cannot_enrol(founder_of(self._identity.root))
        certificate = issue(
            public_key,
            root=self._identity.root,
            root_key=root_key,
            region=member.region,
            roles=member.roles,
            now=self._now(),
        )
        _log.info("certificate-renewed", node=member.node, region=member.region)
        return self._answer(pem(certificate), member.node)

    def _answer(self, certificate: bytes, node: str) -> EnrolAnswer:
        contacts = self._contacts()
        return EnrolAnswer(
            certificate=certificate.decode(),
            node=node,
            keyring=self._identity.keyring,
            bootstrap=contacts.bootstrap,
            peers=contacts.peers,
        )

    def _certify(
        self,
        public_key: Ed25519PublicKey,
        root_key: Ed25519PrivateKey,
        invite: Invite,
        request: EnrolRequest,
        now: float,
    ) -> bytes:
        certificate = issue(
            public_key,
            root=self._identity.root,
            root_key=root_key,
            region=invite.region,
            roles=choose_roles(invite, request.roles),
            now=now,
        )
        return pem(certificate)

    async def _check_region_free(self, region: str, node: str) -> None:
        try:
            async with asyncio.timeout(REGION_TIMEOUT_S):
                holder = await self._region_holder(region)
        except (Unavailable, TimeoutError) as error:
            raise JoinRefused(
                f"the mesh cannot tell whether region {region} has a controller already: {error}",
                fix="Try again in a moment; the invitation was not spent.",
                code="region",
            ) from error
        if holder is not None and holder != node:
            raise JoinRefused(
                f"region {region} has a controller already: node {holder}",
                fix="Join with --role agent, or ask for an invitation to another region. The invitation was not spent.",
                code="region",
            )


def enrol_routes(enroller: Enroller) -> list[web.RouteDef]:
    """The routes of `ENROL_PATHS`, and the renewal for members. Handlers raise Problems; a middleware writes them."""

    async def get_root(request: web.Request) -> web.Response:
        return _json(enroller.root())

    async def post_enrol(request: web.Request) -> web.Response:
        body = await _bounded_body(request)
        try:
            message = msgspec.json.decode(body, type=EnrolRequest)
        except msgspec.MsgspecError as error:
            raise BadRequest(f"malformed enrolment: {error}") from None
        return _json(await enroller.enrol(message, remote=request.remote or ""))

    async def post_renew(request: web.Request) -> web.Response:
        transport = request.transport
        return _json(enroller.renew(transport.get_extra_info("ssl_object") if transport is not None else None))

    return [
        web.get(ROOT_PATH, get_root),
        web.post(ENROL_PATH, post_enrol),
        web.post(RENEW_PATH, post_renew),
    ]


def _json(answer: RootAnswer | EnrolAnswer) -> web.Response:
    headers = {"Cache-Control": "no-store"}
    return web.Response(body=msgspec.json.encode(answer), content_type="application/json", headers=headers)


async def _bounded_body(request: web.Request) -> bytes:
    """The sender is unknown: at most MAX_MESSAGE bytes within BODY_TIMEOUT_S."""
    return await read_in_time(request, MAX_MESSAGE, "the enrolment", BODY_TIMEOUT_S)
