"""How a blob is cut: the list of its chunks. A chunk is named by its digest and shared between blobs."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from protocol.problems import CorruptContent
from protocol.records import Digest

MAX_CHUNK = 4 << 20
MAX_MANIFEST = 8 << 20
"""Bytes of an encoded manifest: room for 30 GB at the average chunk of 256 KiB."""


class Chunk(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    digest: Digest
    length: Annotated[int, Meta(ge=1, le=MAX_CHUNK)]


class Manifest(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """msgpack `[digest of the blob, size in bytes, [[chunk digest, length], ...]]`, chunks in order."""

    digest: Digest
    size: Annotated[int, Meta(ge=0)]
    chunks: tuple[Chunk, ...]

    def encode(self) -> bytes:
        return msgspec.msgpack.encode(self)

    @classmethod
    def decode(cls, data: bytes, *, digest: str) -> Manifest:
        """Raises CorruptContent unless `data` is a manifest of `digest` whose lengths add up."""
        if len(data) > MAX_MANIFEST:
            raise CorruptContent(f"a manifest of {len(data)} bytes; at most {MAX_MANIFEST} are read")
        try:
            manifest = msgspec.msgpack.decode(data, type=cls)
        except msgspec.MsgspecError as error:
            raise CorruptContent(f"malformed manifest: {error}") from None
        if manifest.digest != digest or sum(c.length for c in manifest.chunks) != manifest.size:
            raise CorruptContent("the manifest belongs to other content, or its lengths do not add up")
        return manifest
