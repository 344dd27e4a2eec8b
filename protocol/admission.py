"""The mesh root's word that a key is a member's, small enough for every datagram that proves a node id.

A certificate says the same and more, but with some 600 bytes. So the root signs this beside it, and the certificate
carries the signature as an extension (`bootstrap.certificates`); `until` is the certificate's own end.

    signature    Ed25519 by the mesh root over ADMISSION_CONTEXT || public key (32) || until (8 bytes, big-endian)
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Annotated

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from msgspec import Meta, Struct

ADMISSION_CONTEXT = b"cornerstore/admission/1\0"
REMEMBERED = 16_384
"""Admissions of which it is known whether they are good: a check costs about 130 us."""


class Admission(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """`until` in Unix seconds."""

    until: Annotated[int, Meta(ge=0, le=2**40)]
    signature: Annotated[bytes, Meta(min_length=64, max_length=64)]


@dataclass(frozen=True)
class Credentials:
    """What a node shows to others: its key, the admission of that key, and the raw public key of the root behind it."""

    key: Ed25519PrivateKey = field(repr=False)
    admission: Admission
    root: bytes


def admit(root_key: Ed25519PrivateKey, public_key: bytes, until: int) -> Admission:
    """Make the owner of `public_key` (raw, 32 bytes) a member until then."""
    return Admission(until, root_key.sign(_claim(public_key, until)))


@lru_cache(maxsize=REMEMBERED)
def is_admitted(admission: Admission, *, root: bytes, public_key: bytes) -> bool:
    """True if the owner of `root` (raw) signed it. Whether it has ended is not judged here: that needs the time."""
    try:
        claim = _claim(public_key, admission.until)
        Ed25519PublicKey.from_public_bytes(root).verify(admission.signature, claim)
    except (InvalidSignature, ValueError):
        return False
    return True


def _claim(public_key: bytes, until: int) -> bytes:
    return ADMISSION_CONTEXT + public_key + until.to_bytes(8, "big")
