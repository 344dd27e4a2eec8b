"""The DNS-SD format in which controllers announce themselves (RFC 6762, RFC 6763): constants, encoding, validation.

    <site>-<node[:8]> (<region>)._cornerstore._tcp.local.  SRV  <site>-<node[:8]>.local. <REST port>
                                                           TXT  txtvers=1 region= mesh= root= path= node= peer=
    <site>-<node[:8]>.local.                               A    exactly one address

`root` tells meshes of one name apart. Anybody on the link may announce anything: whatever does not fit exactly is
ignored, and whatever fits is a hint, not a proof.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping, Sequence

from msgspec import Struct

from protocol.identifiers import check_mesh_name, check_region, is_node_id
from protocol.problems import BadRequest

SERVICE_TYPE = "_cornerstore._tcp.local."
TXT_VERSION = "1"
API_PATH = "/v1"
MAX_LABEL = 63
"""Bytes of one DNS label (RFC 1035 section 2.3.4)."""
MAX_SITE = 32
"""Characters of the site in an instance name: the node id and some of the region shall fit too."""
MAX_TXT_STRING = 255

_PATH = re.compile(r"/v[0-9]{1,2}")
_ROOT = re.compile(r"[0-9a-f]{16}")
_PORT = re.compile(r"[0-9]{1,5}")
_NOT_A_LABEL = re.compile(r"[^a-z0-9]+")


class FoundController(Struct, frozen=True, kw_only=True):
    """A controller on this link. `host` is an IPv4 address, `port` its REST port, `peer_port` node to node.

    `name` is the DNS-SD instance name, unique on the link; `url` has no path: the API lies at `url + path`. `root` is
    the beginning of the fingerprint of the mesh's root certificate, 16 hex digits.
    """

    name: str
    region: str
    mesh: str
    root: str
    node: str
    host: str
    port: int
    peer_port: int
    path: str = API_PATH

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    @property
    def peer_address(self) -> str:
        return f"{self.host}:{self.peer_port}"


def txt_properties(*, region: str, mesh: str, root: str, node: str, peer_port: int) -> dict[str, str]:
    """The TXT record, `txtvers` first (RFC 6763 section 6.7)."""
    return {
        "txtvers": TXT_VERSION,
        "region": region,
        "mesh": mesh,
        "root": root,
        "path": API_PATH,
        "node": node,
        "peer": str(peer_port),
    }


def instance_name(*, site: str, region: str, node: str) -> str:
    """What a person sees in a list of services, as a full DNS-SD name. No two nodes have the same."""
    text = f"{_label(site)[:MAX_SITE].strip('-')}-{node[:8]} ({region})"
    if len(text) > MAX_LABEL:
        text = text[: MAX_LABEL - 1] + ")"
    return f"{text}.{SERVICE_TYPE}"


def host_name(*, site: str, node: str) -> str:
    """`<site>-<node[:8]>.local.`: the node id keeps two sites of one name apart, as host names are not probed."""
    return f"{_label(site)}-{node[:8]}.local."


def read_announcement(
    name: str, *, port: int | None, addresses: Sequence[str], properties: Mapping[bytes, bytes | None]
) -> FoundController | None:
    """The controller that an announcement describes; None unless every part of it is well-formed."""
    text = _texts(properties)
    host = next((a for a in addresses if _is_reachable_ipv4(a)), None)
    peer_port = _port(text.get("peer", ""))
    region, mesh, node = text.get("region", ""), text.get("mesh", ""), text.get("node", "")
    path, root = text.get("path", API_PATH), text.get("root", "")
    well_formed = (
        text.get("txtvers") == TXT_VERSION
        and _passes(check_region, region)
        and _passes(check_mesh_name, mesh)
        and is_node_id(node)
        and _ROOT.fullmatch(root)
        and _PATH.fullmatch(path)
    )
    if not well_formed or host is None or peer_port is None or port is None or not 0 < port < 1 << 16:
        return None
    return FoundController(
        name=name,
        region=region,
        mesh=mesh,
        root=root,
        node=node,
        host=host,
        port=port,
        peer_port=peer_port,
        path=path,
    )


def _texts(properties: Mapping[bytes, bytes | None]) -> dict[str, str]:
    return {
        key.decode("ascii", "replace").lower(): (value or b"").decode("ascii", "replace")
        for key, value in properties.items()
        if len(key) <= 9 and len(value or b"") <= MAX_TXT_STRING
    }


def _passes(check: Callable[[str], str], text: str) -> bool:
    try:
        check(text)
    except BadRequest:
        return False
    return True


def _is_reachable_ipv4(text: str) -> bool:
    try:
        address = ipaddress.IPv4Address(text)
    except ValueError:
        return False
    return not (address.is_multicast or address.is_unspecified or address.is_reserved)


def _port(text: str) -> int | None:
    return int(text) if _PORT.fullmatch(text) and 0 < int(text) < 1 << 16 else None


def _label(site: str) -> str:
    """A host name label: lower-case letters, digits and hyphens, short enough for the node id to follow."""
    return _NOT_A_LABEL.sub("-", site.lower()).strip("-")[: MAX_LABEL - 9].strip("-") or "site"
