"""The listeners: every failure is a problem, strangers are kept out, ports are chosen or refused."""

from __future__ import annotations

import asyncio
import math
import ssl

import aiohttp
import pytest
from aiohttp import web
from structlog.testing import capture_logs

from dht.peer_http import PEER, PeerHttp
from node.web import bind, members_only, serving
from protocol.peers import PeerIdentity
from protocol.problems import NoCapacity, NoMatchingService, PortTaken
from protocol.tracing import parsed

MEMBER = PeerIdentity("0" * 40, "home", "eu", ("agent",))


async def failing(request: web.Request) -> web.Response:
    kind = request.query["kind"]
    if kind == "problem":
        raise NoMatchingService("nothing counts words here", fix="Publish one.")
    if kind == "group":
        raise ExceptionGroup("tasks", [ExceptionGroup("inner", [NoCapacity("full", retry_after=2.4)])])
    if kind == "lost":
        raise ConnectionResetError("of a peer that the handler asked")
    if kind == "http":
        raise web.HTTPExpectationFailed
    raise ZeroDivisionError("a secret path")


async def ask(path: str, *, method: str = "GET") -> tuple[int, dict[str, object], aiohttp.typedefs.LooseHeaders]:
    sock = bind("127.0.0.1", None, 0)
    port = sock.getsockname()[1]
    async with (
        serving(sock, [web.get("/fail", failing)]),
        aiohttp.ClientSession() as session,
        session.request(method, f"http://127.0.0.1:{port}{path}") as response,
    ):
        assert response.content_type == "application/problem+json"
        return response.status, await response.json(content_type=None), response.headers


async def test_a_request_carries_its_callers_trace_to_whom_it_asks() -> None:
    asked: list[str] = []

    async def inner(request: web.Request) -> web.Response:
        asked.append(request.headers["traceparent"])
        return web.json_response({})

    first, second = bind("127.0.0.1", None, 0), bind("127.0.0.1", None, 0)
    async with aiohttp.ClientSession() as session:

        async def outer(_: web.Request) -> web.Response:
            port = second.getsockname()[1]
            async with PeerHttp(session, None).request("GET", f"127.0.0.1:{port}", "/", timeout_s=5.0):
                return web.json_response({})

        async with serving(first, [web.get("/", outer)]), serving(second, [web.get("/", inner)]):
            trace = "4bf92f3577b34da6a3ce929d0e0e4736"
            headers = {"traceparent": f"00-{trace}-00f067aa0ba902b7-01"}
            async with session.get(f"http://127.0.0.1:{first.getsockname()[1]}/", headers=headers) as response:
                assert parsed(response.headers["traceresponse"]).trace == trace  # type: ignore[union-attr]
    (carried,) = (parsed(header) for header in asked)
    assert carried is not None
    assert (carried.trace, carried.span != "00f067aa0ba902b7") == (trace, True)


async def test_a_problem_leaves_as_rfc_9457() -> None:
    status, body, _ = await ask("/fail?kind=problem")
    assert status == 404
    assert body["type"].endswith("/no-matching-service")  # type: ignore[attr-defined]
    assert body["detail"] == "nothing counts words here"
    assert body["fix"] == "Publish one."


async def test_a_problem_inside_exception_groups_is_unwrapped_with_retry_after() -> None:
    status, body, headers = await ask("/fail?kind=group")
    assert (status, body["detail"], headers["Retry-After"]) == (503, "full", "2")  # type: ignore[index]


async def test_a_method_that_is_not_served_is_answered_with_those_that_are() -> None:
    status, body, headers = await ask("/fail?kind=http", method="PATCH")
    assert (status, body["status"]) == (405, 405)
    assert body["type"].endswith("/method-not-allowed")  # type: ignore[attr-defined]
    assert headers["Allow"] == "GET, HEAD"  # type: ignore[index, call-overload]


async def test_an_unforeseen_failure_tells_nothing_of_its_inside() -> None:
    status, body, _ = await ask("/fail?kind=bug")
    assert status == 500
    assert "secret" not in str(body)


async def test_foreign_http_errors_become_problems() -> None:
    status, body, _ = await ask("/fail?kind=http")
    assert (status, body["status"], body["type"]) == (417, 417, "about:blank")
    assert (await ask("/nowhere"))[0] == 404


@pytest.mark.parametrize(
    ("peer", "path", "status"), [(None, "/peer", 401), (None, "/bootstrap/x", 200), (MEMBER, "/peer", 200)]
)
async def test_only_members_pass(peer: PeerIdentity | None, path: str, status: int) -> None:
    def identify(_: ssl.SSLObject | None) -> PeerIdentity | None:
        return peer

    async def handler(request: web.Request) -> web.Response:
        return web.json_response({"node": request[PEER].node if PEER in request else None})

    sock = bind("127.0.0.1", None, 0)
    routes = [web.get("/peer", handler), web.get("/bootstrap/x", handler)]
    async with (
        serving(sock, routes, middlewares=[members_only(identify, lambda _: math.inf, open_paths={"/bootstrap/x"})]),
        aiohttp.ClientSession() as session,
        session.get(f"http://127.0.0.1:{sock.getsockname()[1]}{path}") as response,
    ):
        assert response.status == status
        if status == 200:
            assert (await response.json())["node"] == (peer and peer.node)
        else:
            assert response.headers["Connection"] == "close"


def test_a_default_port_that_is_taken_is_replaced_and_a_named_one_is_not() -> None:
    with bind("127.0.0.1", None, 0) as first:
        taken = first.getsockname()[1]
        with bind("127.0.0.1", None, taken) as second:
            assert second.getsockname()[1] != taken
            last = second.getsockname()[1]
        with bind("127.0.0.1", None, taken, last=last) as again:
            assert again.getsockname()[1] == last
        with bind("127.0.0.1", None, taken, last=taken) as third:
            assert third.getsockname()[1] != taken
        with pytest.raises(PortTaken) as caught:
            bind("127.0.0.1", taken, 1)
        assert str(taken) in caught.value.detail
        assert "config.toml" in caught.value.fix


def test_a_foreign_address_is_refused_with_its_fix() -> None:
    with pytest.raises(PortTaken) as caught:
        bind("203.0.113.7", None, 0)
    assert "host" in caught.value.fix


async def test_a_client_that_goes_away_is_no_fault_of_this_node() -> None:
    ended = asyncio.Event()

    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            while True:
                await response.write(b"0" * 65_536)
        finally:
            ended.set()

    sock = bind("127.0.0.1", None, 0)
    with capture_logs() as logs:
        async with serving(sock, [web.get("/endless", endless)]), aiohttp.ClientSession() as session:
            async with session.get(f"http://127.0.0.1:{sock.getsockname()[1]}/endless") as response:
                await response.content.read(1)
            await asyncio.wait_for(ended.wait(), 5)
    assert "unforeseen-failure" not in {entry["event"] for entry in logs}


async def test_a_connection_that_the_handler_itself_lost_is_a_fault() -> None:
    status, body, _ = await ask("/fail?kind=lost")
    assert status == 500
    assert "trace" in str(body["fix"])


async def test_a_body_that_cannot_be_read_is_the_sender_s() -> None:
    async def read(request: web.Request) -> web.Response:
        await request.read()
        return web.Response()

    sock = bind("127.0.0.1", None, 0)
    async with serving(sock, [web.post("/read", read)]):
        reader, writer = await asyncio.open_connection(*sock.getsockname())
        writer.write(b"POST /read HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nno size\r\n")
        assert b" 400 " in await reader.readline()
        writer.close()


async def test_a_coded_body_arrives_as_it_was_sent_for_its_bounds_count_what_travels() -> None:
    async def read(request: web.Request) -> web.Response:
        return web.Response(body=await request.read())

    sock = bind("127.0.0.1", None, 0)
    async with (
        serving(sock, [web.post("/read", read)]),
        aiohttp.ClientSession() as session,
        session.post(
            f"http://127.0.0.1:{sock.getsockname()[1]}/read", data=b"coded", headers={"Content-Encoding": "gzip"}
        ) as response,
    ):
        assert await response.read() == b"coded"


async def test_what_is_no_http_costs_one_quiet_line_and_no_traceback(caplog: pytest.LogCaptureFixture) -> None:
    sock = bind("127.0.0.1", None, 0)
    with capture_logs() as logs:
        async with serving(sock, []):
            reader, writer = await asyncio.open_connection(*sock.getsockname())
            writer.write(b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\n\r\n")
            assert b" 400 " in await reader.readline()
            writer.close()
    assert [(entry["event"], entry["log_level"]) for entry in logs] == [("request-malformed", "debug")]
    assert not caplog.records
