"""A small controller that follows the REST contract, with knobs for what may go wrong."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import msgspec
from aiohttp import web
from msgspec.msgpack import Decoder

from protocol import base64url
from protocol.causes import Cause
from protocol.decisions import Decision, PassedOver, PlacementView
from protocol.identifiers import digest_of
from protocol.instances import (
    AgentView,
    Brought,
    InstanceLog,
    InstanceView,
    Lease,
    PortBinding,
    Progress,
    RegionView,
    ServiceRef,
    ServiceView,
    StartAnswer,
    StartRequest,
    State,
)
from protocol.problems import Forbidden, NoMatchingService, Problem
from region_controller.paging import PageRequest, page_of

ARCHIVE = b"PK\x05\x06" + bytes(18)
SERVICE = ServiceView(
    digest=digest_of(ARCHIVE),
    id="wc01",
    name="wordcount",
    description="Counts words",
    category="/text",
    inputs=("text",),
    outputs=("integer",),
    size=len(ARCHIVE),
    mem=50,
    publisher="ab" * 32,
    version="1",
    published_at=1_700_000_000.0,
    expires_at=1_800_000_000.0,
)
REF = ServiceRef(SERVICE.digest, SERVICE.id, SERVICE.name)
TOKEN = "lease-token"
INSTANCE_ID = "1a2b3c4d5e6f7a8b"
INSTANCE = InstanceView(
    instance=INSTANCE_ID, service=REF, state=State.RUNNING, region="eu/a", agent="n1", host="127.0.0.1", port=1, mem=50
)

DECISION = Decision(
    warmth="cold",
    passed_over=(
        PassedOver(region="eu/a", agent="n2", warmth="built", cause=Cause.MEMORY, why="needs 50 MB, 10 MB are free"),
        PassedOver(region="eu/b", cause=Cause.AWAY, why="it did not\x1b[2J answer"),
    ),
    more=3,
)
PLACEMENTS = (
    PlacementView(
        at=1.0,
        outcome="cold",
        service=SERVICE.id,
        region="eu/a",
        agent="n1",
        why="agent n1 has room for it",
        times=2,
        decision=DECISION,
    ),
    PlacementView(at=1.0, outcome="refused", service="od01", problem="no-capacity", why="no agent can host od01"),
)


@dataclass
class StubController:
    """`problem`: what a start ends with. `content`: what a download gives. `other_holders`: of the
    instance, beside the client. `cut_streams`: event streams to break."""

    port: int
    region: str = "eu/a"
    problem: Problem | None = None
    instances: tuple[InstanceView, ...] = (INSTANCE,)
    other_holders: int = 0
    further_services: tuple[ServiceView, ...] = ()
    operator_token: str = ""
    content: bytes = ARCHIVE
    cut_streams: int = 0
    starts: list[StartRequest] = field(default_factory=list)
    uploads: list[tuple[bytes, bytes | None]] = field(default_factory=list)
    withdrawn: list[tuple[str, bytes | None]] = field(default_factory=list)
    queries: list[dict[str, list[str]]] = field(default_factory=list)
    authorizations: list[str] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def close(self) -> None:
        if self.runner is not None:
            await self.runner.cleanup()

    def answer(self) -> StartAnswer:
        return StartAnswer(
            instance=INSTANCE_ID,
            service=REF,
            start="cold",
            region=self.region,
            agent="n1",
            host="127.0.0.1",
            port=self.port,
            ports=(PortBinding(8080, self.port),),
            url=self.url,
            lease=Lease(TOKEN, 1_800_000_000.0),
            timings_ms={"resolve": 1.0, "total": 12.5},
            why="the only match; free memory",
            decision=DECISION,
        )

    async def start(self, request: web.Request) -> web.StreamResponse:
        self.starts.append(msgspec.json.decode(await request.read(), type=StartRequest))
        if "text/event-stream" not in request.headers.get("Accept", ""):
            if problem := self.problem or _unknown(self.starts[-1]):
                raise problem
            return _json(self.answer(), 201)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await _event(response, "progress", Progress("resolve", "wc01"))
        if self.cut_streams:
            self.cut_streams -= 1
            return response
        await _event(response, "progress", Progress("fetch", "archive", 5, 10))
        if problem := self.problem or _unknown(self.starts[-1]):
            await _event(response, "problem", problem.to_dict())
        else:
            await _event(response, "result", self.answer())
        return response

    async def would(self, request: web.Request) -> web.StreamResponse:
        service = request.match_info["service"]
        if service != SERVICE.id:
            raise NoMatchingService(f"nothing published is called {service!r}")
        return _json(PlacementView(at=1.0, outcome="would", service=service, why="nobody can", decision=DECISION))

    async def list_instances(self, request: web.Request) -> web.StreamResponse:
        return _paged(request, self.instances)

    async def command(self, request: web.Request) -> web.StreamResponse:
        self.authorizations.append(request.headers.get("Authorization", ""))
        self.bodies.append(await request.read())
        operator = bool(self.operator_token) and self.authorizations[-1] == f"Bearer {self.operator_token}"
        if self.authorizations[-1] != f"Bearer {TOKEN}" and not operator:
            raise Forbidden("this token is not the lease's", fix="Use the token that the start answered.")
        states = {"stop": State.STOPPED, "restart": State.RUNNING, "alive": State.RUNNING}
        view = msgspec.structs.replace(INSTANCE, state=states.get(request.match_info.get("verb", ""), State.REMOVED))
        if self.other_holders and not operator and view.state in (State.STOPPED, State.REMOVED):
            view = msgspec.structs.replace(INSTANCE, reason="your lease ended; 1 other lease holds it")
        return _json(view)

    async def log(self, request: web.Request) -> web.StreamResponse:
        if request.headers.get("Authorization") != f"Bearer {TOKEN}":
            raise Forbidden("this token is not the lease's", fix="Use the token that the start answered.")
        written = ("listening", "\x1b[2Jcounted 2 words")
        return _json(InstanceLog(INSTANCE_ID, written[-int(request.query["lines"]) :]))

    async def services(self, request: web.Request) -> web.StreamResponse:
        self.queries.append({key: request.query.getall(key) for key in request.query})
        known = request.query.get("id", SERVICE.id) == SERVICE.id
        return _paged(request, [SERVICE, *self.further_services] if known else [])

    async def service(self, request: web.Request) -> web.StreamResponse:
        if request.match_info["digest"] != SERVICE.digest:
            raise NoMatchingService("nothing is published under that digest")
        return _json(SERVICE)

    async def publish(self, request: web.Request) -> web.StreamResponse:
        self.uploads.append((await request.read(), _envelope(request)))
        return _json(SERVICE, 201)

    async def withdraw(self, request: web.Request) -> web.StreamResponse:
        self.withdrawn.append((request.match_info["digest"], _envelope(request)))
        return _json(SERVICE)

    async def download(self, request: web.Request) -> web.StreamResponse:
        if "text/event-stream" not in request.headers.get("Accept", ""):
            return web.Response(body=self.content)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await _event(response, "progress", Progress("fetch", "from 3 peers", 5, 10))
        await _event(response, "result", Brought(request.match_info["digest"]))
        await response.write_eof()
        return response

    async def word_count(self, request: web.Request) -> web.StreamResponse:
        words = len((await request.read()).split())
        return _json({"words": words}) if "json" in request.headers["Accept"] else web.Response(text=str(words))

    def routes(self) -> list[web.RouteDef]:
        agent = AgentView(
            node="n1", host="127.0.0.1", runtimes=("docker",), memory_total=1024, memory_free=974, instances=1
        )
        region = RegionView(
            region=self.region,
            node="c1",
            addresses=("127.0.0.1:7401",),
            relation="self",
            agents=1,
            memory_total=1024,
            memory_free=974,
            age_s=0.0,
        )
        return [
            web.post("/v1/instances", self.start),
            web.get("/v1/instances", self.list_instances),
            web.get("/v1/instances/{id}", _fixed(INSTANCE)),
            web.get("/v1/instances/{id}/log", self.log),
            web.delete("/v1/instances/{id}", self.command),
            web.post("/v1/instances/{id}/{verb:stop|restart|alive}", self.command),
            web.get("/v1/placements", _fixed(PLACEMENTS)),
            web.get("/v1/placements/{service}", self.would),
            web.get("/v1/services", self.services),
            web.post("/v1/services", self.publish),
            web.get("/v1/services/{digest}", self.service),
            web.delete("/v1/services/{digest}", self.withdraw),
            web.get("/v1/content/{digest}", self.download),
            web.get(
                "/v1/categories",
                _fixed({"category": "/", "services": 1, "children": [{"category": "/text", "services": 1}]}),
            ),
            web.get("/v1/agents", _fixed([agent])),
            web.get("/v1/regions", _fixed([region])),
            web.get(
                "/v1/healthz",
                _fixed({"status": "ok", "region": self.region, "node": "c1", "mesh": "corner", "agents": 0}),
            ),
            web.post("/wordcount", self.word_count),
        ]


@asynccontextmanager
async def stub_controller(*, region: str = "eu/a") -> AsyncIterator[StubController]:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        stub = StubController(sock.getsockname()[1], region)
        app = web.Application(middlewares=[_problems])
        app.add_routes(stub.routes())
        stub.runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await stub.runner.setup()
        await web.SockSite(stub.runner, sock).start()
        try:
            yield stub
        finally:
            await stub.close()


@web.middleware
async def _problems(request: web.Request, handler: Any) -> web.StreamResponse:
    try:
        response: web.StreamResponse = await handler(request)
    except Problem as problem:
        return _json(problem.to_dict(), problem.status, "application/problem+json")
    return response


def _json(value: object, status: int = 200, content_type: str = "application/json") -> web.Response:
    return web.Response(body=msgspec.json.encode(value), status=status, content_type=content_type)


def _paged(request: web.Request, items: Sequence[object]) -> web.Response:
    """In the order given."""
    asked = PageRequest.read(request.query.get("limit"), request.query.get("cursor"))
    after = asked.after(Decoder(tuple[int]))
    page = page_of(range(len(items)), lambda n: (n,), asked.limit, after)
    answer = _json([items[n] for n in page.items])
    answer.headers["X-Total-Count"] = str(page.total)
    if page.cursor:
        answer.headers["Link"] = f'<{request.rel_url.update_query(cursor=page.cursor)}>; rel="next"'
    return answer


def _fixed(value: object) -> Any:
    async def handler(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(0)
        return _json(value)

    return handler


async def _event(response: web.StreamResponse, name: str, data: object) -> None:
    await response.write(b"event: %s\ndata: %s\n\n" % (name.encode(), msgspec.json.encode(data)))


def _unknown(request: StartRequest) -> Problem | None:
    if request.service in (None, SERVICE.id, SERVICE.name, SERVICE.digest):
        return None
    return NoMatchingService(f"nothing published is called {request.service}")


def _envelope(request: web.Request) -> bytes | None:
    header = request.headers.get("Cornerstore-Record")
    return None if header is None else base64url.decode(header)
