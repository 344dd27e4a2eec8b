"""REST for phones, developers and operators (`client_routes`), and the calls of other nodes (`peer_routes`).

Handlers raise Problems; the listener's middleware writes them. Bodies and queries are read strictly: what is not
understood is refused by name.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import structlog
from aiohttp import web

from dht.peer_http import PEER, read_in_time
from protocol.identifiers import check_category, check_digest
from protocol.instances import (
    MAX_LOG_LINES,
    TOTAL_HEADER,
    Brought,
    OnProgress,
    RegionView,
    StartAnswer,
    StartRequest,
)
from protocol.peers import PeerIdentity
from protocol.problems import BadRequest, Forbidden, NotFound
from protocol.records import RECORD_HEADER
from region_controller.controller import Controller
from region_controller.event_stream import answer_or_stream, follow, stream, wants_events
from region_controller.flights import Present
from region_controller.handoff import OPERATOR_HEADER, VERBS, AliveRequest, HandoffRequest, Verb
from region_controller.openapi import OPERATIONS, Operation, describe_api
from region_controller.operations import Caller
from region_controller.paging import P, Page, PageRequest, count_of, page_of
from region_controller.publishing import service_view
from region_controller.summaries import MAX_EXCHANGE, SUMMARIES_PATH, decode_exchange

log = structlog.get_logger(__name__)

MAX_JSON = 64 << 10
BODY_S = 10.0
"""For a body that is read whole: who holds back the rest holds a connection."""
STALLED_S = 60.0
"""A client that takes no part of an archive for so long is hung up on: it holds one of few slots."""
UPLOAD_PART = 256 << 10
DOWNLOAD_PART = 1 << 20
"""Each part costs a turn of a thread and of the event loop."""
DEFAULT_LOG_LINES = 100

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
T = TypeVar("T")


def client_routes(controller: Controller) -> list[web.RouteDef]:
    """Every operation of `openapi.OPERATIONS`."""
    handlers = _ClientHandlers(controller)
    return [web.route(o.method, o.path, _strict(o, getattr(handlers, o.name))) for o in OPERATIONS]


def _strict(operation: Operation, handler: Handler) -> Handler:
    """Refuses query parameters that the operation does not have."""
    known = {p.name for p in operation.parameters if p.where == "query"}

    async def checked(request: web.Request) -> web.StreamResponse:
        if unknown := sorted(set(request.query) - known):
            expected = f"This call takes {', '.join(sorted(known))}." if known else "This call takes none."
            raise BadRequest(f"unknown query parameter {unknown[0]!r}", fix=expected)
        return await handler(request)

    return checked


class _ClientHandlers:
    """One method per operation, by its name."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller
        self._description = msgspec.json.encode(describe_api(importlib.metadata.version("cornerstore")))

    async def start_instance(self, request: web.Request) -> web.StreamResponse:
        client = request.remote or ""
        with self._controller.admission.request(client, time.monotonic()):
            body = await _json(request, StartRequest)
            present = partial(_present, request)
            if wants_events(request):
                return await stream(request, lambda on_progress: self._started(body, on_progress, client, present))
            answer, cold = await self._controller.start(body, client=client, present=present)
        location = {"Location": f"/v1/instances/{answer.instance}"}
        return _answer(answer, status=201 if cold else 200, headers=location)

    async def _started(self, body: StartRequest, on_progress: OnProgress, client: str, present: Present) -> StartAnswer:
        answer, _ = await self._controller.start(body, on_progress, client=client, present=present)
        return answer

    async def list_instances(self, request: web.Request) -> web.Response:
        views = self._controller.instances()
        asked = _page_request(request)
        page = page_of(views, lambda view: (view.service.id, view.instance), asked.limit, asked.after(_BY_SERVICE))
        return _page(request, page, [msgspec.structs.replace(view, log=()) for view in page.items])

    async def get_instance(self, request: web.Request) -> web.Response:
        return _answer(await self._controller.instance(request.match_info["instance"]))

    async def get_log(self, request: web.Request) -> web.Response:
        caller = Caller(_bearer(request), self._operator(request))
        return _answer(await self._controller.log(request.match_info["instance"], _log_lines(request), caller))

    async def remove_instance(self, request: web.Request) -> web.Response:
        return await self._act("remove", request)

    async def stop_instance(self, request: web.Request) -> web.Response:
        return await self._act("stop", request)

    async def restart_instance(self, request: web.Request) -> web.Response:
        return await self._act("restart", request)

    async def keep_instance_alive(self, request: web.Request) -> web.Response:
        body = await _optional_json(request, AliveRequest)
        return await self._act("alive", request, body)

    async def _act(self, verb: Verb, request: web.Request, body: AliveRequest | None = None) -> web.Response:
        caller = Caller(_bearer(request), self._operator(request))
        return _answer(await self._controller.act(verb, request.match_info["instance"], caller, body))

    async def invoke_instance(self, request: web.Request) -> web.StreamResponse:
        caller = Caller(_bearer(request), self._operator(request))
        return await self._controller.relay.serve(request, request.match_info["instance"], caller)

    async def search_services(self, request: web.Request) -> web.Response:
        query = request.query
        asked = _page_request(request)
        found = await self._controller.catalogue.search(
            category=check_category(query.get("category", "/")),
            inputs=tuple(query.getall("input", [])),
            outputs=tuple(query.getall("output", [])),
            service_id=query.get("id", ""),
            text=query.get("q", ""),
        )
        page = self._controller.catalogue.page(found, asked)
        return _page(request, page, [service_view(record) for record in page.items])

    async def publish_service(self, request: web.Request) -> web.Response:
        view = await self._controller.publishing.publish(
            request.content.iter_chunked(UPLOAD_PART),
            request.headers.get(RECORD_HEADER),
            operator=self._operator(request),
        )
        return _answer(view, status=201, headers={"Location": f"/v1/services/{view.digest}"})

    async def get_service(self, request: web.Request) -> web.Response:
        digest = check_digest(request.match_info["digest"])
        return _answer(await self._controller.publishing.show(digest))

    async def withdraw_service(self, request: web.Request) -> web.Response:
        digest = check_digest(request.match_info["digest"])
        view = await self._controller.publishing.withdraw(
            digest, request.headers.get(RECORD_HEADER), operator=self._operator(request)
        )
        return _answer(view)

    async def get_content(self, request: web.Request) -> web.StreamResponse:
        digest = check_digest(request.match_info["digest"])
        if wants_events(request):
            return await stream(request, lambda on_progress: self._brought(digest, on_progress))
        async with self._controller.publishing.archive(digest) as path:
            return await _send_file(request, path, digest)

    async def _brought(self, digest: str, on_progress: OnProgress) -> Brought:
        await self._controller.publishing.bring(digest, on_progress)
        return Brought(digest)

    async def list_categories(self, request: web.Request) -> web.Response:
        return _answer(await self._controller.categories(check_category(request.query.get("category", "/"))))

    async def follow_events(self, request: web.Request) -> web.StreamResponse:
        with self._controller.listening(request.remote or "") as events:
            return await follow(request, events)

    async def list_agents(self, request: web.Request) -> web.Response:
        return _paged(request, self._controller.agents(), lambda view: (view.node,), _BY_NODE)

    async def list_regions(self, request: web.Request) -> web.Response:
        def own_first(view: RegionView) -> tuple[bool, str, str]:
            return view.relation != "self", view.region, view.node

        return _paged(request, await self._controller.regions(), own_first, _BY_REGION)

    async def list_placements(self, _: web.Request) -> web.Response:
        return _answer(self._controller.placements())

    async def preview_placement(self, request: web.Request) -> web.Response:
        return _answer(await self._controller.would(request.match_info["service"]))

    async def get_health(self, _: web.Request) -> web.Response:
        return _answer(self._controller.health())

    async def get_openapi(self, _: web.Request) -> web.Response:
        return web.Response(body=self._description, content_type="application/json")

    def _operator(self, request: web.Request) -> bool:
        return self._controller.is_operator(_bearer(request))


def peer_routes(controller: Controller) -> list[web.RouteDef]:
    """Agent links, hand-offs and their leases. Needs `request[PEER]`, set by the listener from the certificate."""

    async def receive_handoff(request: web.Request) -> web.StreamResponse:
        peer = _controller_peer(request)
        body, present = await _json(request, HandoffRequest), partial(_present, request)
        if not wants_events(request):
            return _answer(await controller.receive_handoff(body, peer, present=present))
        return await answer_or_stream(
            request, lambda tell: controller.receive_handoff(body, peer, tell, present), _answer
        )

    async def exchange_summaries(request: web.Request) -> web.Response:
        peer = _controller_peer(request)
        body = await read_in_time(request, MAX_EXCHANGE, "the summary", BODY_S)
        answer = controller.relatives.receive(decode_exchange(body), peer)
        return web.Response(body=msgspec.msgpack.encode(answer), content_type="application/msgpack")

    async def get_instance(request: web.Request) -> web.Response:
        _controller_peer(request)
        return _answer(await controller.instance(request.match_info["instance"]))

    async def get_log(request: web.Request) -> web.Response:
        caller = _on_behalf_of(request, _controller_peer(request))
        return _answer(await controller.log(request.match_info["instance"], _log_lines(request), caller))

    async def invoke(request: web.Request) -> web.StreamResponse:
        caller = _on_behalf_of(request, _controller_peer(request))
        return await controller.relay.serve(request, request.match_info["instance"], caller)

    async def act(request: web.Request) -> web.Response:
        peer = _controller_peer(request)
        verb = next((v for v in VERBS if v == request.match_info["verb"]), None)
        if verb is None:
            raise NotFound(f"there is no call {request.match_info['verb'][:32]!r} on an instance")
        caller = _on_behalf_of(request, peer)
        body = await _optional_json(request, AliveRequest) if verb == "alive" else None
        return _answer(await controller.act(verb, request.match_info["instance"], caller, body))

    return [
        web.get("/peer/agent-link", controller.links.serve),
        web.post("/peer/handoff", receive_handoff),
        web.post(SUMMARIES_PATH, exchange_summaries),
        web.get("/peer/instances/{instance}", get_instance),
        web.get("/peer/instances/{instance}/log", get_log),
        web.post("/peer/instances/{instance}/invoke", invoke),
        web.post("/peer/instances/{instance}/{verb}", act),
    ]


def _controller_peer(request: web.Request) -> PeerIdentity:
    peer: PeerIdentity | None = request.get(PEER)
    if peer is None or "controller" not in peer.roles:
        raise Forbidden("only controllers of the mesh may ask this")
    return peer


def _on_behalf_of(request: web.Request, peer: PeerIdentity) -> Caller:
    return Caller(_bearer(request), request.headers.get(OPERATOR_HEADER) == "1", peer.node)


def _log_lines(request: web.Request) -> int:
    """Raises BadRequest."""
    text = request.query.get("lines", str(DEFAULT_LOG_LINES))
    lines = count_of(text, MAX_LOG_LINES)
    if lines is None:
        raise BadRequest(f"lines={text[:20]!r} is not a number from 1 to {MAX_LOG_LINES}")
    return lines


# --- pages ----------------------------------------------------------------------------------------------------------

_BY_SERVICE = msgspec.msgpack.Decoder(tuple[str, str])
_BY_NODE = msgspec.msgpack.Decoder(tuple[str])
_BY_REGION = msgspec.msgpack.Decoder(tuple[bool, str, str])


def _page_request(request: web.Request) -> PageRequest:
    """Raises BadLimit."""
    return PageRequest.read(request.query.get("limit"), request.query.get("cursor"))


def _paged(
    request: web.Request, items: Sequence[T], position: Callable[[T], P], order: msgspec.msgpack.Decoder[P]
) -> web.Response:
    asked = _page_request(request)
    page = page_of(items, position, asked.limit, asked.after(order))
    return _page(request, page, page.items)


def _page(request: web.Request, page: Page[T], shown: Sequence[object]) -> web.Response:
    """The items as `shown`; beside them how many there are in all, and where the next page is (RFC 8288)."""
    headers = {TOTAL_HEADER: str(page.total)}
    if page.cursor is not None:
        headers["Link"] = f'<{request.rel_url.update_query(cursor=page.cursor)}>; rel="next"'
    return _answer(shown, headers=headers)


# --- reading and writing --------------------------------------------------------------------------------------------


def _answer(value: Any, *, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(
        body=msgspec.json.encode(value), status=status, headers=headers, content_type="application/json"
    )


def _present(request: web.Request) -> bool:
    """Whether who asked has not hung up."""
    return request.transport is not None and not request.transport.is_closing()


def _bearer(request: web.Request) -> str | None:
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    return token.strip() or None if scheme.lower() == "bearer" else None


async def _json(request: web.Request, kind: type[T]) -> T:
    """Raises BadRequest with what is wrong, TooLarge beyond MAX_JSON."""
    return _decoded(await _body(request), kind)


async def _optional_json(request: web.Request, kind: type[T]) -> T | None:
    data = await _body(request)
    return _decoded(data, kind) if data else None


def _decoded(data: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError as error:
        raise BadRequest(f"the body is not a {kind.__name__}: {error}", fix="See /openapi.json.") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRequest(f"the body is not JSON: {error}", fix="Send a JSON object.") from None


async def _body(request: web.Request) -> bytes:
    return await read_in_time(request, MAX_JSON, "the JSON body", BODY_S)


async def _send_file(request: web.Request, path: Path, digest: str) -> web.StreamResponse:
    """Streamed while the file is held: it may be evicted afterwards."""
    size = (await asyncio.to_thread(path.stat)).st_size
    response = web.StreamResponse(
        headers={"Content-Type": "application/zip", "Content-Length": str(size), "ETag": f'"{digest}"'}
    )
    await response.prepare(request)
    try:
        async for part in _parts(path):
            async with asyncio.timeout(STALLED_S):
                await response.write(part)
        await response.write_eof()
    except TimeoutError:
        log.info("download-stalled", digest=digest, client=request.remote)
        if request.transport is not None:
            request.transport.abort()
    return response


async def _parts(path: Path) -> AsyncIterator[bytes]:
    with path.open("rb") as file:
        while part := await asyncio.to_thread(file.read, DOWNLOAD_PART):
            yield part
