"""Sealed datagrams: only who holds the mesh key can read or write one; everybody else gets silence.

Byte layout of a datagram, at most `MAX_DATAGRAM` bytes:

    version    1   1
    key id     1   which key of the keyring sealed it
    nonce     12   8 bytes drawn at each start of the node, then a big-endian counter of 4 bytes
    sealed     n   ChaCha20-Poly1305 of the plaintext, with a tag of 16 bytes

Associated data: SEAL_CONTEXT || version || key id || mesh name. The nonce prefix is random per start (and drawn anew
when the counter is used up), so no nonce repeats under one key, across restarts or between nodes. The receiver keeps a
replay window per prefix. It is forgotten with the process: a recorded datagram may be replayed once to a node that
restarted, which is harmless because every message is idempotent and answers are matched by a random id.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable
from typing import Annotated, Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from msgspec import Meta, Struct

from protocol.problems import TooLarge

SEAL_VERSION = 1
SEAL_CONTEXT = b"cornerstore/datagram/1\0"
MAX_DATAGRAM = 1200
HEADER_BYTES = 14
TAG_BYTES = 16
MAX_PLAINTEXT = MAX_DATAGRAM - HEADER_BYTES - TAG_BYTES
PREFIX_BYTES = 8
COUNTER_LIMIT = 2**32
REPLAY_WINDOW = 1024
"""Datagrams of one sender that may overtake each other."""
MAX_SENDERS = 8192
"""Nonce prefixes remembered; the least recently heard is forgotten first."""

KeyId = Annotated[int, Meta(ge=0, le=255)]
MeshKey = Annotated[bytes, Meta(min_length=32, max_length=32)]


class Keyring(Struct, frozen=True):
    """The mesh's symmetric keys. `current` seals; all open, so that a key can be replaced without a flag day."""

    mesh: Annotated[str, Meta(min_length=1, max_length=64)]
    keys: dict[KeyId, MeshKey]
    current: KeyId

    def __post_init__(self) -> None:
        if self.current not in self.keys:
            raise ValueError(f"the current key {self.current} is not in the keyring")

    def __repr__(self) -> str:
        """Without the keys: a keyring may end up in a log."""
        return f"Keyring(mesh={self.mesh!r}, key ids={sorted(self.keys)}, current={self.current})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [("mesh", self.mesh), ("key_ids", sorted(self.keys)), ("current", self.current)]


class ReplayWindow:
    """Which counters of which nonce prefix were seen. Bounded in senders and in depth."""

    def __init__(self, *, depth: int = REPLAY_WINDOW, senders: int = MAX_SENDERS) -> None:
        self._depth = depth
        self._senders = senders
        self._seen: OrderedDict[bytes, tuple[int, int]] = OrderedDict()

    def admit(self, prefix: bytes, counter: int) -> bool:
        """True the first time; False for a repetition and for a counter that fell out of the window."""
        highest, bitmap = self._seen.get(prefix, (-1, 0))
        if counter > highest:
            shift = min(counter - highest, self._depth)
            bitmap = (bitmap << shift | 1) & ((1 << self._depth) - 1)
            highest = counter
        else:
            bit = 1 << (highest - counter)
            if highest - counter >= self._depth or bitmap & bit:
                return False
            bitmap |= bit
        self._seen[prefix] = (highest, bitmap)
        self._seen.move_to_end(prefix)
        if len(self._seen) > self._senders:
            self._seen.popitem(last=False)
        return True


class Sealer:
    """Seals and opens datagrams with a keyring. `random` yields n fresh bytes."""

    def __init__(self, keyring: Keyring, *, random: Callable[[int], bytes] = os.urandom) -> None:
        self._random = random
        self._window = ReplayWindow()
        self._counter = COUNTER_LIMIT
        self._prefix = b""
        self.use(keyring)

    def use(self, keyring: Keyring) -> None:
        """Replace the keyring: after a rotation, or after a revoked member was shut out."""
        self._keyring = keyring
        self._ciphers = {key_id: ChaCha20Poly1305(key) for key_id, key in keyring.keys.items()}

    def seal(self, plaintext: bytes) -> bytes:
        """Raises TooLarge beyond MAX_PLAINTEXT bytes: a datagram that fragments is a datagram lost."""
        if len(plaintext) > MAX_PLAINTEXT:
            raise TooLarge(f"a message of {len(plaintext)} bytes; a datagram carries {MAX_PLAINTEXT}")
        if self._counter == COUNTER_LIMIT:
            self._prefix, self._counter = self._random(PREFIX_BYTES), 0
        nonce = self._prefix + self._counter.to_bytes(4, "big")
        self._counter += 1
        header = bytes((SEAL_VERSION, self._keyring.current))
        sealed = self._ciphers[self._keyring.current].encrypt(nonce, plaintext, self._associated(header))
        return header + nonce + sealed

    def open(self, datagram: bytes) -> bytes | None:
        """The plaintext, or None: not of this mesh, of an unknown key or version, altered, or seen before."""
        if not HEADER_BYTES + TAG_BYTES <= len(datagram) <= MAX_DATAGRAM or datagram[0] != SEAL_VERSION:
            return None
        cipher = self._ciphers.get(datagram[1])
        if cipher is None:
            return None
        nonce = datagram[2:HEADER_BYTES]
        try:
            plaintext = cipher.decrypt(nonce, datagram[HEADER_BYTES:], self._associated(datagram[:2]))
        except InvalidTag:
            return None
        prefix, counter = nonce[:PREFIX_BYTES], int.from_bytes(nonce[PREFIX_BYTES:], "big")
        return plaintext if self._window.admit(prefix, counter) else None

    def _associated(self, header: bytes) -> bytes:
        return SEAL_CONTEXT + header + self._keyring.mesh.encode()
