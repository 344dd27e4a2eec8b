"""What is published in the mesh, as this controller needs it: resolve a request, search, the category tree.

Lookups are cached for a moment. A request for something known is answered from the cache while it is refreshed behind
it, and from the last known records while the mesh does not answer: a region must not stop because its uplink did.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

import structlog
from msgspec import Struct

from dht.contracts import Directory
from protocol.identifiers import check_category, check_service_id, is_digest
from protocol.instances import StartRequest
from protocol.problems import BadRequest, NoMatchingService, Problem, Unavailable
from protocol.records import ServiceRecord, Signed
from region_controller import resolution
from region_controller.resolution import Standing, WarmthOf

log = structlog.get_logger(__name__)

FRESH_S = 1.0
REFRESH_S = 2.0
"""Between FRESH_S and this age, a non-empty answer is given at once and refreshed behind it."""
LAST_KNOWN_S = 600.0
"""How long an answer stands in while the mesh is unreachable."""
OWN_S = 2.0
"""How long what was published or withdrawn here is laid over the mesh's answers: by then the mesh knows."""
MAX_CACHED_NAMES = 512
SEEN_S = 600.0
"""A publisher met for the first time so long ago is no longer new."""
MAX_PUBLISHERS = 65_536
MISSING_S = 60.0
"""How long content that could not be had is the last choice."""
MAX_MISSING = 4096


def _searched_text(record: ServiceRecord) -> str:
    return f"{record.id} {record.name} {record.description} {record.category}".casefold()


K = TypeVar("K")
V = TypeVar("V")
Spawn = Callable[[Coroutine[Any, Any, None]], object]


class _Lookup(Struct):
    """`source`: the directory's own list; while it stays the same object, nothing has changed."""

    source: Sequence[Signed]
    records: tuple[ServiceRecord, ...]
    at: float


class _Own(Struct):
    record: ServiceRecord
    at: float


class Catalogue:
    """`spawn` runs refreshes in tasks that somebody owns; `monotonic` is the clock of the cache."""

    def __init__(
        self,
        directory: Directory,
        spawn: Spawn,
        *,
        clock: Callable[[], float],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._directory = directory
        self._spawn = spawn
        self._clock = clock
        self._monotonic = monotonic
        self._cache: OrderedDict[str, _Lookup] = OrderedDict()
        self._refreshing: set[str] = set()
        self._own: dict[tuple[bytes, str], _Own] = {}
        self._met: OrderedDict[bytes, float] = OrderedDict()
        self._trusted: OrderedDict[bytes, None] = OrderedDict()
        self._missing: OrderedDict[str, float] = OrderedDict()

    async def resolve(self, request: StartRequest, warmth_of: WarmthOf) -> tuple[ServiceRecord, str]:
        """The service a request means, and why that one.

        Raises BadRequest, NoMatchingService, AmbiguousService, Unavailable.
        """
        if (request.service is None) == (request.category is None and not request.inputs and not request.outputs):
            raise BadRequest(
                "a request names a service, or describes one by category, inputs and outputs",
                fix='Send {"service": "od01"} or {"category": "/image", "inputs": ["image"]}, not both.',
            )
        if request.service is not None:
            return await self._named(request.service)
        return await self._meant(request, warmth_of)

    async def _named(self, text: str) -> tuple[ServiceRecord, str]:
        if is_digest(text):
            record = resolution.by_name(text, await self._lookup(f"service:{text}"))
            if record is None:
                raise NoMatchingService(
                    f"nothing published has the digest {text}",
                    fix="`cornerstore search` (GET /v1/services) lists what is.",
                )
            return record, "named by digest"
        if len(text) > 128 or not text.strip():
            check_service_id(text)
        record = resolution.by_name(text, await self._either(f"id:{text}", f"name:{text}"))
        if record is None:
            raise resolution.no_such_service(text, await self._near())
        return record, "named by id" if record.id == text else "named by name"

    async def _either(self, *names: str) -> list[ServiceRecord]:
        """What is found at any of the names. Raises Unavailable only if one was not answered and none has anything."""
        answers = await asyncio.gather(*map(self._lookup, names), return_exceptions=True)
        found = [record for answer in answers if isinstance(answer, tuple) for record in answer]
        for answer in answers:
            if isinstance(answer, BaseException) and not (found and isinstance(answer, Unavailable)):
                raise answer
        return found

    async def _meant(self, request: StartRequest, warmth_of: WarmthOf) -> tuple[ServiceRecord, str]:
        category = check_category(request.category) if request.category is not None else "/"
        found = await self._lookup(f"category:{category}")
        horizon = self._monotonic() - MISSING_S
        missing = {digest for digest, at in self._missing.items() if at > horizon}
        match = resolution.by_meaning(request, category, found, warmth_of, self._standing, missing)
        if match is None:
            raise resolution.no_such_meaning(request, category, await self._near())
        return match

    async def _near(self) -> tuple[ServiceRecord, ...]:
        """Everything published, for a hint; nothing if the mesh is slow: a hint is not worth an error."""
        try:
            return await self._lookup("category:/")
        except Unavailable:
            return ()

    # --- search -----------------------------------------------------------------------------------------------------

    async def search(
        self,
        *,
        category: str = "/",
        inputs: tuple[str, ...] = (),
        outputs: tuple[str, ...] = (),
        service_id: str = "",
        text: str = "",
    ) -> list[ServiceRecord]:
        """Publishers known here first; of equal standing, newest first.

        `text` is looked for in id, name, description and category, without regard to case.
        """
        wanted = text.casefold()
        matches = [
            record
            for record in await self._lookup(f"id:{service_id}" if service_id else f"category:{category}")
            if resolution.matches_meaning(record, category, inputs, outputs)
            and (not wanted or wanted in _searched_text(record))
        ]
        return resolution.known_first(matches, self._standing)

    async def by_digest(self, digest: str) -> list[ServiceRecord]:
        """The records of one service, one per publisher, newest first."""
        return resolution.newest_versions(await self._lookup(f"service:{digest}"))

    # --- whom to prefer -----------------------------------------------------------------------------------------------

    def trust(self, publisher: bytes) -> None:
        """Something of this publisher was published or started here."""
        _remember(self._trusted, publisher, None, MAX_PUBLISHERS)

    def missing(self, digest: str) -> None:
        """The content could not be had: for MISSING_S, anything else that fits is a better choice."""
        _remember(self._missing, digest, self._monotonic(), MAX_MISSING)

    def _standing(self, publisher: bytes) -> Standing:
        if publisher in self._trusted:
            return Standing.TRUSTED
        met = self._met.get(publisher)
        return Standing.SEEN if met is not None and self._monotonic() - met >= SEEN_S else Standing.NEW

    # --- own publications -------------------------------------------------------------------------------------------

    def published(self, record: ServiceRecord) -> None:
        """Here from now on, or, if it is a tombstone, gone from now on, whatever the mesh has heard yet."""
        now = self._monotonic()
        self.trust(record.publisher)
        self._own = {key: own for key, own in self._own.items() if now - own.at <= OWN_S}
        self._own[(record.publisher, record.digest)] = _Own(record, now)
        for name in record.names:
            self._cache.pop(name, None)

    # --- cache ------------------------------------------------------------------------------------------------------

    async def _lookup(self, name: str) -> tuple[ServiceRecord, ...]:
        return self._with_own(name, await self._cached(name))

    def _with_own(self, name: str, found: tuple[ServiceRecord, ...]) -> tuple[ServiceRecord, ...]:
        """What the mesh shows, one record per publisher, id and name, newest first, under what was done here."""
        now, horizon = self._clock(), self._monotonic() - OWN_S
        own = [o.record for o in self._own.values() if o.at >= horizon and name in o.record.names]
        if own:
            newest = {(r.publisher, r.id, r.name): r for r in sorted(own, key=lambda r: r.seq)}
            seqs = {slot: record.seq for slot, record in newest.items()}
            others = [r for r in found if r.seq > seqs.get((r.publisher, r.id, r.name), -1)]
            found = (*sorted(newest.values(), key=lambda r: -r.seq), *others)
        return tuple(r for r in found if r.expiry > now and not r.withdrawn)

    async def _cached(self, name: str) -> tuple[ServiceRecord, ...]:
        known = self._cache.get(name)
        age = self._monotonic() - known.at if known else float("inf")
        if known and (age <= FRESH_S or (known.records and age <= REFRESH_S)):
            self._cache.move_to_end(name)
            if age > FRESH_S:
                self._refresh(name)
            return known.records
        try:
            return await self._fetch(name)
        except Unavailable:
            if known and known.records and age <= LAST_KNOWN_S:
                log.warning("catalogue-answers-from-memory", name=name, age_s=round(age))
                return known.records
            raise

    def _refresh(self, name: str) -> None:
        if name not in self._refreshing:
            self._refreshing.add(name)
            self._spawn(self._refresh_quietly(name))

    async def _refresh_quietly(self, name: str) -> None:
        try:
            await self._fetch(name)
        except Problem as problem:
            log.info("catalogue-refresh-failed", name=name, problem=problem.detail)
        finally:
            self._refreshing.discard(name)

    async def _fetch(self, name: str) -> tuple[ServiceRecord, ...]:
        source = await self._directory.services(name)
        known = self._cache.get(name)
        if known is not None and known.source is source:
            records = known.records
        else:
            records = tuple(s.record for s in source if isinstance(s.record, ServiceRecord))
            for publisher in {record.publisher for record in records}.difference(self._met):
                _remember(self._met, publisher, self._monotonic(), MAX_PUBLISHERS)
        self._cache[name] = _Lookup(source, records, self._monotonic())
        self._cache.move_to_end(name)
        while len(self._cache) > MAX_CACHED_NAMES:
            self._cache.popitem(last=False)
        return records


def _remember(memory: OrderedDict[K, V], name: K, value: V, most: int) -> None:
    memory[name] = value
    memory.move_to_end(name)
    if len(memory) > most:
        memory.popitem(last=False)
