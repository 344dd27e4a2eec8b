"""Which connections may stay: all in all, of one peer, and of those who have not shown yet who they are. Pure."""

from __future__ import annotations

from collections import Counter
from typing import Generic, TypeVar

C = TypeVar("C")

MAX_CONNECTIONS = 256
MAX_OF_ONE_PEER = 32
MAX_UNKNOWN = 32


class ConnectionLimits(Generic[C]):
    """Of strangers the oldest makes room: a member shows its certificate within milliseconds, so a crowd of strangers
    that say nothing pushes out itself. A member never makes room for another."""

    def __init__(self) -> None:
        self._unknown: dict[C, None] = {}
        self._peers: dict[C, str] = {}
        self._of_peer: Counter[str] = Counter()

    def arrived(self, connection: C) -> list[C]:
        """Connections to close now; perhaps the new one itself."""
        self._unknown[connection] = None
        over = len(self._unknown) + len(self._peers) > MAX_CONNECTIONS
        if over or len(self._unknown) > MAX_UNKNOWN:
            oldest = next(iter(self._unknown))
            del self._unknown[oldest]
            return [oldest]
        return []

    def identified(self, connection: C, peer: str) -> bool:
        """False if it is to be closed: this peer has enough, or it made room already."""
        if connection not in self._unknown or self._of_peer[peer] >= MAX_OF_ONE_PEER:
            return False
        del self._unknown[connection]
        self._peers[connection] = peer
        self._of_peer[peer] += 1
        return True

    def gone(self, connection: C) -> None:
        self._unknown.pop(connection, None)
        peer = self._peers.pop(connection, None)
        if peer is not None:
            self._of_peer[peer] -= 1
            if not self._of_peer[peer]:
                del self._of_peer[peer]
