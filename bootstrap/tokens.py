"""The invitation as one line of text that a person copies from one machine to another.

    cornerstore1-<base64url, no padding>

    base64url of  payload || checksum
    payload       msgpack array [mesh, region, addresses, fingerprint, invite, secret, expires]
    checksum      the first 6 bytes of SHA-256("cornerstore/token/1\\0" || payload)

`fingerprint` is SHA-256 over the DER of the mesh root certificate, `invite` names the invitation (8 bytes, not secret),
`secret` is 20 random bytes, `expires` is in Unix s. The digit after `cornerstore` is the version of the format.
"""

from __future__ import annotations

import hashlib
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from protocol import base64url
from protocol.addresses import in_words
from protocol.identifiers import check_mesh_name, check_region
from protocol.problems import JoinRefused, Problem
from protocol.records import Address, Seconds

NAME = "cornerstore"
VERSION = "1"
PREFIX = f"{NAME}{VERSION}-"
MAX_TOKEN = 2048
CHECKSUM_BYTES = 6
INVITE_BYTES = 8
SECRET_BYTES = 20
_CONTEXT = b"cornerstore/token/1\0"

Fingerprint = Annotated[bytes, Meta(min_length=32, max_length=32)]
InviteId = Annotated[bytes, Meta(min_length=INVITE_BYTES, max_length=INVITE_BYTES)]
TokenAddresses = Annotated[tuple[Address, ...], Meta(min_length=1, max_length=8)]
Secret = Annotated[bytes, Meta(min_length=SECRET_BYTES, max_length=SECRET_BYTES)]


class Token(Struct, frozen=True, array_like=True, forbid_unknown_fields=True, kw_only=True):
    """`addresses`: host:port of node-to-node listeners, of which any may be tried."""

    mesh: Annotated[str, Meta(max_length=32)]
    region: Annotated[str, Meta(max_length=263)]
    addresses: TokenAddresses
    fingerprint: Fingerprint
    invite: InviteId
    secret: Secret
    expires: Seconds

    def __repr__(self) -> str:
        return f"Token(mesh={self.mesh!r}, region={self.region!r}, invite={self.invite.hex()})"


def encode_token(token: Token) -> str:
    payload = msgspec.msgpack.encode(token)
    return PREFIX + base64url.encode(payload + _checksum(payload))


def decode_token(text: str) -> Token:
    """Raises JoinRefused (code `token`) for anything but the text of a token; blanks and line breaks are ignored."""
    text = "".join(text.split())
    if len(text) > MAX_TOKEN or not text.startswith(NAME):
        raise _mangled(f"a token begins with {PREFIX} and has at most {MAX_TOKEN} characters")
    if not text.startswith(PREFIX):
        raise _mangled(f"this release reads tokens that begin with {PREFIX}")
    body = text.removeprefix(PREFIX)
    try:
        data = base64url.decode(body)
    except ValueError:
        raise _mangled("it holds a character that tokens do not have, or it was cut") from None
    payload, checksum = data[:-CHECKSUM_BYTES], data[-CHECKSUM_BYTES:]
    if checksum != _checksum(payload):
        raise _mangled("its checksum does not match")
    try:
        token = msgspec.msgpack.decode(payload, type=Token)
        check_mesh_name(token.mesh)
        check_region(token.region)
    except (msgspec.MsgspecError, Problem) as error:
        raise _mangled(in_words(str(error))) from None
    if encode_token(token) != text:
        raise _mangled("its spelling is not the one it was printed with")
    return token


def _checksum(payload: bytes) -> bytes:
    return hashlib.sha256(_CONTEXT + payload).digest()[:CHECKSUM_BYTES]


def _mangled(detail: str) -> JoinRefused:
    return JoinRefused(
        f"the token is not whole: {detail}",
        fix="Copy the whole line that `cornerstore bootstrap invite` printed.",
        code="token",
    )
