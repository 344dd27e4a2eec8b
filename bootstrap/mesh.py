"""Founding a mesh: its root, its keyring, and the identity of its first node."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from bootstrap.certificates import check_roles, issue, make_root
from bootstrap.identity import OLD_STATE_FIX, Identity, discard_unfinished, has_identity, save_identity
from dht.overlay.sealing import Keyring
from protocol.identifiers import check_mesh_name, check_region, node_id
from protocol.problems import Conflict
from protocol.records import raw_public_key

MESH_KEY_BYTES = 32


def create_mesh(data_dir: Path, *, mesh: str, region: str, roles: Sequence[str], now: float) -> Identity:
    """A new mesh whose first node has its identity in `data_dir` and holds the root key.

    Raises Conflict over an existing identity, BadRequest for a malformed name, region or role.
    """
    check_mesh_name(mesh)
    check_region(region)
    check_roles(roles)
    if has_identity(data_dir):
        raise Conflict(f"{data_dir} holds the identity of a node already", fix=OLD_STATE_FIX)
    discard_unfinished(data_dir)
    root_key, key = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    root = make_root(root_key, mesh=mesh, founder=node_id(raw_public_key(key)), now=now)
    certificate = issue(key.public_key(), root=root, root_key=root_key, region=region, roles=roles, now=now)
    keyring = Keyring(mesh=mesh, keys={1: secrets.token_bytes(MESH_KEY_BYTES)}, current=1)
    return save_identity(data_dir, key=key, certificate=certificate, root=root, keyring=keyring, root_key=root_key)
