"""Sealed datagrams: only who holds the mesh key can read or write one; everybody else gets silence.

Byte layout of a datagram, at most `MAX_DATAGRAM` bytes:

    version    1   1
    key id     1   which key of the keyring sealed it
    nonce     12   a prefix of 10 random bytes, then a big-endian counter of 2 bytes
    sealed     n   ChaCha20-Poly1305 of the plaintext, with a tag of 16 bytes

Associated data: SEAL_CONTEXT || version || key id || mesh name.

**Prefixes.** A sender draws one for each destination, and a new one when the counter is used up and whenever that
destination keeps silent. So no nonce repeats under one key: of 10^9 prefixes drawn, two are equal with a chance of one
in two million.

**Replays.** A recorded *request* would be answered again, to whatever address it is made to seem to come from. So the
receiver keeps a window of counters for each prefix, and drops what it has seen, from wherever it comes. Answers need no
window: each is matched, once, with a random id that only the asked one was sent.

A window can be spoilt: who seals a datagram with another's prefix and the highest counter makes all that follows look
old. An outsider cannot seal. A member can, but has to know a prefix that another uses *towards a third*, which it is
never sent: it would have to read that path, and then lose a race for each request, since what stays unanswered is sent
again under a prefix that nobody has seen yet.

Windows are forgotten with the process, and beyond MAX_SENDERS. A recorded request may then be replayed once more, as it
may once to each other node; that is harmless, because every request is idempotent.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Annotated, Any, NamedTuple

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
NONCE_BYTES = 12
PREFIX_BYTES = 10
COUNTER_LIMIT = 1 << 8 * (NONCE_BYTES - PREFIX_BYTES)
MAX_DESTINATIONS = 8192
"""For which a prefix is kept; the one not written to for longest gets a new one when it is."""
REPLAY_WINDOW = 1024
"""Datagrams under one prefix that may overtake each other."""
MAX_SENDERS = 16_384
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


class Opened(NamedTuple):
    """What a datagram said, and the nonce under which it was said."""

    plaintext: bytes
    nonce: bytes


class Sealer:
    """Seals and opens datagrams with a keyring. `random` yields n fresh bytes."""

    def __init__(self, keyring: Keyring, *, random: Callable[[int], bytes] = os.urandom) -> None:
        self._random = random
        self._window = ReplayWindow()
        self._nonces: OrderedDict[Hashable, tuple[bytes, int]] = OrderedDict()
        """By destination: the prefix, and the next counter."""
        self.use(keyring)

    def use(self, keyring: Keyring) -> None:
        """Replace the keyring: after a rotation, or after a revoked member was shut out."""
        self._keyring = keyring
        self._ciphers = {key_id: ChaCha20Poly1305(key) for key_id, key in keyring.keys.items()}

    def seal(self, plaintext: bytes, destination: Hashable) -> bytes:
        """Raises TooLarge beyond MAX_PLAINTEXT bytes: a datagram that fragments is a datagram lost."""
        if len(plaintext) > MAX_PLAINTEXT:
            raise TooLarge(f"a message of {len(plaintext)} bytes; a datagram carries {MAX_PLAINTEXT}")
        header = bytes((SEAL_VERSION, self._keyring.current))
        nonce = self._next_nonce(destination)
        sealed = self._ciphers[self._keyring.current].encrypt(nonce, plaintext, self._associated(header))
        return header + nonce + sealed

    def begin_anew(self, destination: Hashable) -> None:
        """Seal under a new prefix from now on: this destination keeps silent, perhaps since somebody spoilt its window
        for the present one."""
        self._nonces.pop(destination, None)

    def _next_nonce(self, destination: Hashable) -> bytes:
        prefix, counter = self._nonces.get(destination, (b"", COUNTER_LIMIT))
        if counter == COUNTER_LIMIT:
            prefix, counter = self._random(PREFIX_BYTES), 0
        self._nonces[destination] = prefix, counter + 1
        self._nonces.move_to_end(destination)
        if len(self._nonces) > MAX_DESTINATIONS:
            self._nonces.popitem(last=False)
        return prefix + counter.to_bytes(NONCE_BYTES - PREFIX_BYTES, "big")

    def open(self, datagram: bytes) -> Opened | None:
        """None: not of this mesh, of an unknown key or version, or altered."""
        if not HEADER_BYTES + TAG_BYTES <= len(datagram) <= MAX_DATAGRAM or datagram[0] != SEAL_VERSION:
            return None
        cipher = self._ciphers.get(datagram[1])
        if cipher is None:
            return None
        nonce = datagram[2:HEADER_BYTES]
        try:
            return Opened(cipher.decrypt(nonce, datagram[HEADER_BYTES:], self._associated(datagram[:2])), nonce)
        except InvalidTag:
            return None

    def is_first(self, nonce: bytes) -> bool:
        """True the first time that this is asked of a nonce; False for a replay."""
        return self._window.admit(nonce[:PREFIX_BYTES], int.from_bytes(nonce[PREFIX_BYTES:], "big"))

    def _associated(self, header: bytes) -> bytes:
        return SEAL_CONTEXT + header + self._keyring.mesh.encode()
