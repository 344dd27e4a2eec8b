"""What is published in the mesh, as this controller needs it: resolve a request, search, the category tree."""

from __future__ import annotations

import asyncio
import math
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, TypeVar

from msgspec import Meta, Struct
from msgspec.msgpack import Decoder

from dht.contracts import Directory
from protocol.identifiers import check_category, check_service_id, in_category, is_digest
from protocol.instances import StartRequest
from protocol.problems import BadCursor, BadRequest, NoMatchingService, Unavailable
from protocol.records import ServiceRecord
from region_controller import near_misses, resolution
from region_controller.known_names import Found, KnownNames, Sleep, Spawn, searched_text
from region_controller.paging import BEGIN_ANEW, Page, PageRequest, page_of
from region_controller.resolution import Resolved, Standing, WarmthOf

OWN_S = 2.0
"""How long what was published or withdrawn here is laid over the mesh's answers: by then the mesh knows."""
SEEN_S = 600.0
"""A publisher met for the first time so long ago is no longer new."""
MAX_PUBLISHERS = 65_536
MISSING_S = 60.0
"""How long content that could not be had is the last choice."""
MAX_MISSING = 4096


Time = Annotated[float, Meta(ge=0, le=1e12)]
Position = tuple[bytes, Time, int, int, bytes, str, str]
"""In a search: of which run of which controller, when it began, and the rank as it was then."""
_POSITION: Decoder[Position] = Decoder(Position)
K = TypeVar("K")
V = TypeVar("V")


class _Own(Struct):
    record: ServiceRecord
    at: float


class Catalogue:
    """`spawn` runs refreshes in tasks that somebody owns; `monotonic` and `sleep` are their clock."""

    def __init__(
        self,
        directory: Directory,
        spawn: Spawn,
        *,
        clock: Callable[[], float],
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self._run = secrets.token_bytes(6)
        """Tells cursors of this run from others: standing is known here, and only since the start."""
        self._known = KnownNames(directory, spawn, monotonic=monotonic, sleep=sleep, on_change=self._meet)
        self._clock = clock
        self._monotonic = monotonic
        self._own: dict[tuple[bytes, str], _Own] = {}
        self._met: OrderedDict[bytes, float] = OrderedDict()
        self._trusted: OrderedDict[bytes, float] = OrderedDict()
        self._missing: OrderedDict[str, float] = OrderedDict()

    async def resolve(self, request: StartRequest, warmths: Callable[[], WarmthOf]) -> Resolved:
        """The service a request means, and why that one. `warmths` is asked once the records are here.

        With `force_rebuild` the mesh is asked first, whatever was known a moment ago: who builds anew means the newest
        version.

        Raises BadRequest, NoMatchingService, AmbiguousService, Unavailable.
        """
        if (request.service is None) == (request.category is None and not request.inputs and not request.outputs):
            raise BadRequest(
                "a request names a service, or describes one by category, inputs and outputs",
                fix='Send {"service": "od01"} or {"category": "/image", "inputs": ["image"]}, not both.',
            )
        if request.service is not None:
            return await self._named(request.service, anew=request.force_rebuild)
        return await self._meant(request, warmths)

    async def _named(self, text: str, *, anew: bool) -> Resolved:
        if is_digest(text):
            record = resolution.by_name(text, await self._lookup(f"service:{text}"))
            if record is None:
                raise NoMatchingService(
                    f"nothing published has the digest {text}",
                    fix="`cornerstore search` (GET /v1/services) lists what is.",
                )
            return Resolved(record, "named by digest")
        if len(text) > 128 or not text.strip():
            check_service_id(text)
        record = resolution.by_name(text, await self._either(f"id:{text}", f"name:{text}", anew=anew))
        if record is None:
            raise await asyncio.to_thread(near_misses.no_such_service, text, await self._near())
        return Resolved(record, "named by id" if record.id == text else "named by name")

    async def _either(self, *names: str, anew: bool) -> list[ServiceRecord]:
        """What is found at any of the names. Raises Unavailable only if one was not answered and none has anything."""
        answers = await asyncio.gather(*(self._lookup(n, anew=anew) for n in names), return_exceptions=True)
        found = [record for answer in answers if isinstance(answer, tuple) for record in answer]
        for answer in answers:
            if isinstance(answer, BaseException) and not (found and isinstance(answer, Unavailable)):
                raise answer
        return found

    async def _meant(self, request: StartRequest, warmths: Callable[[], WarmthOf]) -> Resolved:
        category = check_category(request.category) if request.category is not None else "/"
        found = await self._lookup(f"category:{category}", anew=request.force_rebuild)
        horizon = self._monotonic() - MISSING_S
        missing = {digest for digest, at in self._missing.items() if at > horizon}
        standing = partial(self._standing, at=self._monotonic())
        match = resolution.by_meaning(request, category, found, warmths(), standing, missing)
        if match is None:
            raise await asyncio.to_thread(near_misses.no_such_meaning, request, category, await self._near())
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
    ) -> Sequence[ServiceRecord]:
        """Everything published that fits. Raises Unavailable.

        `text` is looked for in id, name, description and category, without regard to case.
        """
        wanted = text.casefold()

        def fits(record: ServiceRecord) -> bool:
            return resolution.matches_meaning(record, category, inputs, outputs) and wanted in searched_text(record)

        name = f"id:{service_id}" if service_id else f"category:{category}"
        matches = (await self._known.at(name)).matching(inputs=inputs, outputs=outputs, text=wanted)
        if service_id:
            matches = [record for record in matches if in_category(record.category, category)]
        return self._with_own(name, matches, fits)

    def page(self, found: Sequence[ServiceRecord], asked: PageRequest) -> Page[ServiceRecord]:
        """Of what a search found: publishers known here first; of equal standing, newest first.

        On all pages a publisher's standing is the one of when the first was asked for. Raises BadCursor.
        """
        after = asked.after(_POSITION)
        if after is not None and after[0] != self._run:
            raise BadCursor("the cursor is of another controller, or of before a restart", fix=BEGIN_ANEW)
        began = self._monotonic() if after is None else after[1]
        rank = resolution.known_first(found, partial(self._standing, at=began))
        return page_of(found, rank, asked.limit, after and after[2:], (self._run, began))

    async def by_digest(self, digest: str) -> list[ServiceRecord]:
        """The records of one service, one per publisher, newest first.

        Who downloads, shows or publishes one service asks once: unlike what is searched and started, it is not kept
        fresh, for which the nodes nearest to it would be asked every second.
        """
        return resolution.newest_versions(await self._lookup(f"service:{digest}", watch=False))

    # --- whom to prefer -----------------------------------------------------------------------------------------------

    def trust(self, publisher: bytes) -> None:
        """Something of this publisher was published or started here."""
        since = self._trusted.get(publisher, self._monotonic())
        _remember(self._trusted, publisher, since, MAX_PUBLISHERS)

    def missing(self, digest: str) -> None:
        """The content could not be had: for MISSING_S, anything else that fits is a better choice."""
        _remember(self._missing, digest, self._monotonic(), MAX_MISSING)

    def _standing(self, publisher: bytes, at: float) -> Standing:
        if self._trusted.get(publisher, math.inf) <= at:
            return Standing.TRUSTED
        return Standing.SEEN if at - self._met.get(publisher, math.inf) >= SEEN_S else Standing.NEW

    # --- own publications -------------------------------------------------------------------------------------------

    def published(self, record: ServiceRecord) -> None:
        """Here from now on, or, if it is a tombstone, gone from now on, whatever the mesh has heard yet."""
        now = self._monotonic()
        self.trust(record.publisher)
        self._own = {key: own for key, own in self._own.items() if now - own.at <= OWN_S}
        self._own[(record.publisher, record.digest)] = _Own(record, now)
        for name in record.names:
            self._known.forget(name)

    # --- what the mesh has ------------------------------------------------------------------------------------------

    async def _lookup(self, name: str, *, watch: bool = True, anew: bool = False) -> tuple[ServiceRecord, ...]:
        """One record per publisher, id and name, newest first."""
        return self._with_own(name, (await self._known.at(name, watch=watch, anew=anew)).records, lambda _: True)

    def _with_own(
        self, name: str, found: Sequence[ServiceRecord], fits: Callable[[ServiceRecord], bool]
    ) -> tuple[ServiceRecord, ...]:
        """What the mesh shows, under what was done here if it `fits`."""
        now, horizon = self._clock(), self._monotonic() - OWN_S
        own = [o.record for o in self._own.values() if o.at >= horizon and name in o.record.names]
        if own:
            newest = {(r.publisher, r.id, r.name): r for r in sorted(own, key=lambda r: r.seq)}
            seqs = {slot: record.seq for slot, record in newest.items()}
            others = [r for r in found if r.seq > seqs.get((r.publisher, r.id, r.name), -1)]
            found = (*sorted(filter(fits, newest.values()), key=lambda r: -r.seq), *others)
        return tuple(r for r in found if r.expiry > now and not r.withdrawn)

    def _meet(self, found: Found) -> None:
        """Whoever still publishes is remembered before who does no more, however many came since."""
        now = self._monotonic()
        publishers = {record.publisher for record in found.records}
        for publisher in sorted(publishers, key=self._met.__contains__, reverse=True):
            _remember(self._met, publisher, self._met.get(publisher, now), MAX_PUBLISHERS)


def _remember(memory: OrderedDict[K, V], name: K, value: V, most: int) -> None:
    memory[name] = value
    memory.move_to_end(name)
    if len(memory) > most:
        memory.popitem(last=False)
