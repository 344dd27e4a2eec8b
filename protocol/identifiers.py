"""Names of things: digests, node ids, regions, categories, record keys. All are plain strings, checked on entry."""

from __future__ import annotations

import hashlib
import re

from protocol.problems import BadRequest

DIGEST_PREFIX = "sha256:"

# What names look like, for every part that reads one: requests, records of the mesh, the TOSCA profile.
DIGEST = r"sha256:[0-9a-f]{64}"
NODE = r"[0-9a-f]{40}"
REGION = r"[a-z0-9][a-z0-9-]{0,31}(/[a-z0-9][a-z0-9-]{0,31}){0,7}"
CATEGORY = r"(/[A-Za-z0-9_.-]{1,64}){1,8}|/"
MAX_CATEGORY = 160
SERVICE_ID = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}"
SERVICE_NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}"
TYPE_NAME = r"[A-Za-z0-9_.+/-]{1,64}"
MAX_TYPE_NAMES = 8

_DIGEST = re.compile(DIGEST)
_REGION = re.compile(REGION)
_MESH = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")
_NODE = re.compile(NODE)
_CATEGORY = re.compile(r"(/[A-Za-z0-9_.-]{1,64}){0,8}/?")
_ID_OR_NAME = re.compile(f"{SERVICE_ID}|{SERVICE_NAME}")

KEY_BYTES = 20
"""Kademlia's identifier space: 160 bits."""


def digest_of(data: bytes) -> str:
    """`sha256:<64 hex>`: what `sha256sum` prints, with its algorithm."""
    return DIGEST_PREFIX + hashlib.sha256(data).hexdigest()


def is_digest(text: str) -> bool:
    return _DIGEST.fullmatch(text) is not None


def check_digest(text: str) -> str:
    """Raises BadRequest unless `text` is `sha256:<64 lower-case hex>`."""
    if not is_digest(text):
        raise BadRequest(f"{text[:80]!r} is not a digest", fix="A digest reads sha256: and 64 hex digits.")
    return text


def check_region(text: str) -> str:
    """Raises BadRequest unless `text` is a path such as `eu/de/darmstadt`, at most 8 deep."""
    if not _REGION.fullmatch(text):
        raise BadRequest(
            f"{text[:80]!r} is not a region",
            fix="A region is a path of lower-case names such as eu/de/darmstadt, at most 8 deep.",
        )
    return text


def check_mesh_name(text: str) -> str:
    """Raises BadRequest unless `text` is one lower-case name of at most 32 letters, digits and dashes."""
    if not _MESH.fullmatch(text):
        raise BadRequest(
            f"{text[:80]!r} is not a mesh name", fix="Use at most 32 lower-case letters, digits and dashes."
        )
    return text


def parent_region(region: str) -> str:
    """`eu/de` for `eu/de/darmstadt`; the empty string above the top."""
    return region.rpartition("/")[0]


def check_category(text: str) -> str:
    """The category without its trailing slash; `/` is the root. Raises BadRequest for anything else."""
    category = text.rstrip("/") or "/"
    if not text.startswith("/") or not _CATEGORY.fullmatch(text) or len(category) > MAX_CATEGORY:
        raise BadRequest(
            f"{text[:80]!r} is not a category",
            fix=f"A category begins with a slash, such as /image/faces, and has at most {MAX_CATEGORY} characters.",
        )
    return category


def category_ancestors(category: str) -> list[str]:
    """`["/", "/image", "/image/faces"]` for `/image/faces`: the keys at which a service is announced."""
    parts = [p for p in category.split("/") if p]
    return ["/"] + ["/" + "/".join(parts[: i + 1]) for i in range(len(parts))]


def in_category(category: str, subtree: str) -> bool:
    """True if `category` is `subtree` or lies below it."""
    return subtree == "/" or category == subtree or category.startswith(subtree + "/")


def check_service_id(text: str) -> str:
    if not _ID_OR_NAME.fullmatch(text):
        raise BadRequest(
            f"{text[:80]!r} is neither a service id, a name nor a digest",
            fix="Use the id (od01), the name, or sha256: and 64 hex digits.",
        )
    return text


def is_node_id(text: str) -> bool:
    return _NODE.fullmatch(text) is not None


def node_id(public_key: bytes) -> str:
    """40 hex digits: the first 160 bits of SHA-256 over the raw Ed25519 public key. Identity is a hash of the key."""
    return hashlib.sha256(public_key).digest()[:KEY_BYTES].hex()


def record_key(name: str) -> bytes:
    """The 160-bit DHT key of a record name such as `id:od01`, `category:/image` or `content:sha256:...`."""
    return hashlib.sha256(name.encode()).digest()[:KEY_BYTES]
