"""Which connections of a listener may stay: so many in all, so many of one address. Pure.

Each costs a file descriptor, and opening one costs a stranger nothing. Idle is what waits: for its first byte, a
handshake, the head of a request. The connection that has been idle for longest makes room for who comes, so a crowd
that says nothing pushes out itself; what is being answered never has to go. Who has the most loses first.
"""

from __future__ import annotations

from typing import Generic, TypeVar

from msgspec import Struct

MAX_CONNECTIONS = 1024
MAX_OF_ONE_ADDRESS = 384
"""Fifty phones behind one router, each a browser with its six connections, and some to spare."""
SHARE_OF_FILES = 4
"""A listener takes at most one in so many of the files that the process may open."""

C = TypeVar("C")


class _Address(Struct, Generic[C]):
    """`idle`, `idle_members`: those that wait, the longest first."""

    open: int = 0
    idle: dict[C, None] = {}
    idle_members: dict[C, None] = {}


class Connections(Generic[C]):
    """`refused`, `made_room`: how many so far. A member's idle connections go after those of all others."""

    def __init__(self, *, total: int = MAX_CONNECTIONS, of_one_address: int = MAX_OF_ONE_ADDRESS) -> None:
        self.total = total
        self.of_one_address = min(of_one_address, total)
        self.refused = 0
        self.made_room = 0
        self._addresses: dict[str, _Address[C]] = {}
        self._address_of: dict[C, str] = {}
        self._members: set[C] = set()

    def __len__(self) -> int:
        return len(self._address_of)

    def of(self, address: str) -> int:
        """How many that address has."""
        return self._addresses[address].open if address in self._addresses else 0

    def arrived(self, connection: C, address: str) -> C | None:
        """The connection to close now, if any; perhaps the new one itself. It begins idle."""
        leaving = None
        if self.of(address) >= self.of_one_address:
            leaving = self._longest_idle([self._addresses[address]])
        elif len(self) >= self.total:
            leaving = self._longest_idle([one for one in self._addresses.values() if one.open >= self.of(address)])
        else:
            self._add(connection, address)
            return None
        if leaving is None:
            self.refused += 1
            return connection
        self.made_room += 1
        self.gone(leaving)
        self._add(connection, address)
        return leaving

    def _longest_idle(self, addresses: list[_Address[C]]) -> C | None:
        """Of the address with the most."""
        for waiting in ("idle", "idle_members"):
            if crowded := [one for one in addresses if getattr(one, waiting)]:
                idle: dict[C, None] = getattr(max(crowded, key=lambda one: one.open), waiting)
                return next(iter(idle))
        return None

    def _add(self, connection: C, address: str) -> None:
        self._address_of[connection] = address
        at = self._addresses.setdefault(address, _Address())
        at.open += 1
        at.idle[connection] = None

    def working(self, connection: C) -> None:
        """A request of it is being answered."""
        if at := self._at(connection):
            at.idle.pop(connection, None)
            at.idle_members.pop(connection, None)

    def waiting(self, connection: C) -> None:
        """It was answered, and is idle from now on."""
        if at := self._at(connection):
            (at.idle_members if connection in self._members else at.idle)[connection] = None

    def member(self, connection: C) -> None:
        """It showed a certificate of the mesh."""
        if self._at(connection):
            self._members.add(connection)

    def gone(self, connection: C) -> None:
        at = self._at(connection)
        if at is None:
            return
        self.working(connection)
        self._members.discard(connection)
        at.open -= 1
        address = self._address_of.pop(connection)
        if not at.open:
            del self._addresses[address]

    def _at(self, connection: C) -> _Address[C] | None:
        address = self._address_of.get(connection)
        return None if address is None else self._addresses[address]


def allowed(configured: int, open_files: int) -> int:
    """How many connections a listener may have where the process may open so many files: 0 or less is no limit."""
    return configured if open_files <= 0 else max(1, min(configured, open_files // SHARE_OF_FILES))
