"""Who is at the other end of a mutual TLS connection."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

Role = Literal["controller", "agent", "store"]
ROLES: tuple[Role, ...] = ("controller", "agent", "store")


class PeerIdentity(Struct, frozen=True):
    """Read from a verified mesh certificate: node id, region it was admitted to, roles it may play."""

    node: str
    mesh: str
    region: str
    roles: tuple[Role, ...]
