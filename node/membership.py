"""Staying a member: the node's certificate is renewed in the last third of its life, at the founding node."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import structlog

from bootstrap import Identity, founder_of, renew, renew_own, renewal_due
from dht.contracts import Directory
from dht.peer_http import PeerHttp
from protocol.problems import Problem

log = structlog.get_logger(__name__)

CHECK_EVERY_S = 6 * 3600.0
MAX_LOOKUPS = 64
"""Regions asked for on the way to the founder; a mesh with more levels and sites is searched again next time."""


async def keep_certificate(
    identity: Identity, use: Callable[[Identity], None], *, directory: Directory, http: PeerHttp
) -> None:
    """Renew when due, for ever, and hand the result to `use`. A failure is logged and tried again: a month is left."""
    while True:
        if renewal_due(identity.certificate, time.time()):
            try:
                identity = await _renewed(identity, directory, http)
            except Problem as problem:
                log.warning("certificate-not-renewed", detail=problem.detail, fix=problem.fix)
            else:
                use(identity)
                log.info("certificate-renewed", until=identity.certificate.not_valid_after_utc.isoformat())
        await asyncio.sleep(CHECK_EVERY_S)


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
