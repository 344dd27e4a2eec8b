"""What the mesh has at each name that was asked for here: remembered for a moment, and kept fresh while people ask.

An answer is at most REFRESH_S old. What was asked for within the last WATCHED_S is asked anew behind the answers,
every FRESH_S (one comparison with each replica, if nothing has changed), so who asks need not wait for the mesh. While
the mesh does not answer, what was last known stands in: a region must not stop because its uplink did.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from itertools import islice
from typing import Any

import structlog
from msgspec import Struct

from dht.contracts import Directory
from protocol.problems import Problem, Unavailable
from protocol.records import ServiceRecord, Signed

log = structlog.get_logger(__name__)

FRESH_S = 1.0
REFRESH_S = 2.0
"""Between FRESH_S and this age, a non-empty answer is given at once and refreshed behind it."""
LAST_KNOWN_S = 600.0
"""How long an answer stands in while the mesh is unreachable."""
MAX_KNOWN = 512
MAX_RECORDS = 100_000
"""At all names together: some 150 MB at the most."""
WATCHED_S = 30.0
MAX_WATCHED = 16

Spawn = Callable[[Coroutine[Any, Any, None]], object]
Sleep = Callable[[float], Awaitable[None]]


class Found(Struct, frozen=True):
    """What stands at a name, newest first, and beside each record the text in which words are looked for.

    `source`: the directory's own list; while it stays the same object, nothing has changed.
    """

    source: Sequence[Signed] = ()
    records: tuple[ServiceRecord, ...] = ()
    texts: tuple[str, ...] = ()

    def matching(self, *, inputs: Sequence[str], outputs: Sequence[str], text: str) -> Sequence[ServiceRecord]:
        """Those that take every input, give every output and have `text` (case folded) somewhere: a few ms."""
        found: Sequence[ServiceRecord] = self.records
        if text:
            found = [record for record, its in zip(found, self.texts, strict=True) if text in its]
        for one in inputs:
            found = [record for record in found if one in record.inputs]
        for one in outputs:
            found = [record for record in found if one in record.outputs]
        return found


def searched_text(record: ServiceRecord) -> str:
    return f"{record.id} {record.name} {record.description} {record.category}".casefold()


def found_anew(source: Sequence[Signed], before: Found) -> Found:
    """`before` brought up to date: only what is new costs more than a look, and no object is made for the others. For
    10,000 services that is a millisecond or two, in which the event loop does nothing else."""
    first, last = _unchanged(before.source, source)
    old, new = slice(first, len(before.source) - last), slice(first, len(source) - last)
    texts = dict(zip((signed.envelope for signed in before.source[old]), before.texts[old], strict=True))
    services = [(signed, signed.record) for signed in source[new] if isinstance(signed.record, ServiceRecord)]
    told = (texts.get(signed.envelope) or searched_text(record) for signed, record in services)
    return Found(
        source
        if len(services) == new.stop - first
        else [*source[:first], *(signed for signed, _ in services), *source[new.stop :]],
        (*before.records[:first], *(record for _, record in services), *before.records[old.stop :]),
        (*before.texts[:first], *told, *before.texts[old.stop :]),
    )


def _unchanged(before: Sequence[Signed], now: Sequence[Signed]) -> tuple[int, int]:
    """How many of the same objects are at the beginnings of both lists, and how many others at their ends."""
    shorter = min(len(before), len(now))
    first = next((at for at, (old, new) in enumerate(zip(before, now, strict=False)) if old is not new), shorter)
    ends = zip(islice(reversed(before), shorter - first), reversed(now), strict=False)
    return first, next((at for at, (old, new) in enumerate(ends) if old is not new), shorter - first)


class _Known(Struct):
    found: Found
    at: float
    asked_at: float


class KnownNames:
    """`spawn` runs tasks that somebody owns; `monotonic` and `sleep` are the clock. `on_change` hears of new lists."""

    def __init__(
        self,
        directory: Directory,
        spawn: Spawn,
        *,
        monotonic: Callable[[], float],
        sleep: Sleep,
        on_change: Callable[[Found], None],
    ) -> None:
        self._directory = directory
        self._spawn = spawn
        self._monotonic = monotonic
        self._sleep = sleep
        self._on_change = on_change
        self._known: OrderedDict[str, _Known] = OrderedDict()
        self._watched: set[str] = set()
        self._flights: dict[str, asyncio.Future[Found | Problem]] = {}

    def forget(self, name: str) -> None:
        """Ask the mesh before the next answer."""
        self._known.pop(name, None)

    async def at(self, name: str, *, watch: bool = True, anew: bool = False) -> Found:
        """`watch`: it is to be kept fresh, since people may ask for it again and again. `anew`: ask the mesh first.

        Raises Unavailable if the mesh does not answer and nothing is known.
        """
        now, known = self._monotonic(), self._known.get(name)
        if known is not None:
            known.asked_at = now
            self._known.move_to_end(name)
        age = now - known.at if known else float("inf")
        if known and not anew and (age <= FRESH_S or (known.found.records and age <= REFRESH_S)):
            if age > FRESH_S and name not in self._watched:
                self._spawn(self._refresh(name))
            return known.found
        try:
            found = await self._fetch(name)
        except Unavailable:
            if known and known.found.records and age <= LAST_KNOWN_S:
                log.warning("catalogue-answers-from-memory", name=name, age_s=round(age))
                return known.found
            raise
        if watch and found.records and name not in self._watched and len(self._watched) < MAX_WATCHED:
            self._watched.add(name)
            self._spawn(self._watch(name))
        return found

    async def _watch(self, name: str) -> None:
        try:
            while (known := self._known.get(name)) and self._monotonic() - known.asked_at <= WATCHED_S:
                await self._sleep(FRESH_S)
                await self._refresh(name)
        finally:
            self._watched.discard(name)

    async def _refresh(self, name: str) -> None:
        try:
            await self._fetch(name)
        except Problem as problem:
            log.info("catalogue-refresh-failed", name=name, problem=problem.detail)

    async def _fetch(self, name: str) -> Found:
        """What the mesh has now. Who asks for the same at the same time waits for the same answer."""
        flight = self._flights.get(name)
        if flight is None:
            flight = self._flights[name] = asyncio.get_running_loop().create_future()
            self._spawn(self._fly(name, flight))
        outcome = await asyncio.shield(flight)
        if isinstance(outcome, Problem):
            raise Problem.from_dict(outcome.to_dict())
        return outcome

    async def _fly(self, name: str, flight: asyncio.Future[Found | Problem]) -> None:
        outcome: Found | Problem = Unavailable("this controller stops")
        try:
            outcome = self._keep(name, await self._directory.services(name))
        except Problem as problem:
            outcome = problem
        finally:
            del self._flights[name]
            flight.set_result(outcome)

    def _keep(self, name: str, source: Sequence[Signed]) -> Found:
        now, known = self._monotonic(), self._known.get(name)
        if known is None or known.found.source is not source:
            found = found_anew(source, known.found if known else Found())
            self._on_change(found)
        else:
            found = known.found
        self._known[name] = _Known(found, now, known.asked_at if known else now)
        self._known.move_to_end(name)
        while len(self._known) > 1 and (len(self._known) > MAX_KNOWN or self._total() > MAX_RECORDS):
            self._known.popitem(last=False)
        return found

    def _total(self) -> int:
        return sum(len(known.found.records) for known in self._known.values())
