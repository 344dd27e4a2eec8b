"""Staying a member: the node's certificate is renewed in the last third of its life, at the founding node.

Without a good certificate other nodes refuse this one, and its own agent is refused, too; phones are answered from what
is known here. Whatever the reason, it is told in the log and in `GET /v1/healthz`, with its fix.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime

import structlog
from cryptography import x509

from bootstrap import Identity, founder_of, renew, renew_own, renewal_due, validity
from dht.contracts import Directory
from dht.peer_http import PeerHttp
from node.warnings import REMIND_S
from protocol.problems import ConfigError, Problem

log = structlog.get_logger(__name__)

LOOK_EVERY_S = 60.0
RETRY_S = 600.0
"""A machine may be up for an hour a day, and the founding node for another."""
WARN_S = 14 * 86_400.0
"""So long before the end an operator is warned: renewals have failed for two weeks by then."""
MAX_LOOKUPS = 64
"""Regions asked for on the way to the founder; a mesh with more levels and sites is searched again next time."""


def certificate_warning(certificate: x509.Certificate, *, founder: str, now: float) -> Problem | None:
    """What an operator should know of a member's certificate, or nothing. `founder`: the node that renews it."""
    begins, ends = validity(certificate)
    until = datetime.fromtimestamp(ends, UTC).date().isoformat()
    if now < begins:
        return Problem(
            f"this machine's clock says {datetime.fromtimestamp(now, UTC).date().isoformat()}, which is before the "
            "node's certificate begins: other nodes are refused",
            fix="Set the clock (for instance: timedatectl set-ntp true).",
        )
    if now >= ends:
        return Problem(
            f"the node's certificate ended on {until}: other nodes refuse this one",
            fix=f"Ask the operator of the founding node {founder[:8]} for an invitation and spend it here with "
            "`cornerstore bootstrap join TOKEN`: keys and content stay. If the date is wrong, set the clock.",
        )
    if ends - now < WARN_S and renewal_due(certificate, now):
        return Problem(
            f"the node's certificate ends on {until} and was not renewed yet",
            fix=f"Let this node meet the founding node {founder[:8]}: it must be up, with the role controller.",
        )
    return None


class Membership:
    """The identity as it is now. `use` is handed each new one."""

    def __init__(
        self, identity: Identity, use: Callable[[Identity], None], *, directory: Directory, http: PeerHttp
    ) -> None:
        self._identity = identity
        self._use = use
        self._directory = directory
        self._http = http
        self._retry_at = 0.0
        self._remind_at = 0.0

    @property
    def ends(self) -> float:
        """When the certificate ends, Unix s."""
        return validity(self._identity.certificate)[1]

    def warning(self, now: float) -> Problem | None:
        """See `certificate_warning`. The founding node renews its own, whenever it is up."""
        if self._identity.root_key is not None and now >= validity(self._identity.certificate)[0]:
            return None
        return certificate_warning(self._identity.certificate, founder=founder_of(self._identity.root), now=now)

    async def keep(self) -> None:
        """For ever: renew when due. A failure is told and tried again: a month is left."""
        while True:
            now, monotonic = time.time(), time.monotonic()
            if now >= self.ends and self._identity.root_key is None:
                self._take_up_rejoined()
            elif renewal_due(self._identity.certificate, now) and monotonic >= self._retry_at:
                await self._renew(monotonic)
            await asyncio.sleep(LOOK_EVERY_S)

    async def _renew(self, monotonic: float) -> None:
        try:
            renewed = await _renewed(self._identity, self._directory, self._http)
        except Problem as problem:
            self._retry_at = monotonic + RETRY_S
            if monotonic >= self._remind_at:
                self._remind_at = monotonic + REMIND_S
                log.warning("certificate-not-renewed", detail=problem.detail, fix=problem.fix)
        else:
            self._change(renewed)

    def _take_up_rejoined(self) -> None:
        """Who joins again writes a new certificate beside this node, which need not be restarted."""
        try:
            found = Identity.load(self._identity.directory.parent)
        except ConfigError as problem:
            log.debug("identity-not-read", detail=problem.detail)
            return
        if validity(found.certificate)[1] > self.ends:
            self._change(found)

    def _change(self, identity: Identity) -> None:
        self._identity = identity
        self._use(identity)
        log.info("certificate-renewed", until=identity.certificate.not_valid_after_utc.isoformat())


async def _renewed(identity: Identity, directory: Directory, http: PeerHttp) -> Identity:
    if identity.root_key is not None:
        return renew_own(identity, now=time.time())
    founder = founder_of(identity.root)
    addresses = await controller_addresses(founder, directory)
    if not addresses:
        raise Problem(f"the founding node {founder[:8]} is not in sight", fix="Start it, with the controller role.")
    return await renew(identity, http, addresses[0])


async def controller_addresses(node: str, directory: Directory) -> tuple[str, ...]:
    """Where the controller `node` is reached, found by walking the tree of regions from its top; empty if nowhere."""
    waiting, seen = [""], set[str]()
    while waiting and len(seen) < MAX_LOOKUPS:
        parent = waiting.pop(0)
        seen.add(parent)
        for record in await directory.regions(f"children:{parent}"):
            if record.node == node:
                return record.addresses
            if record.region not in seen:
                waiting.append(record.region)
    return ()
