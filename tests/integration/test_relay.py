"""Services called through their controller: what a browser page may do, and what a service must not do to it."""

from __future__ import annotations

import asyncio
import gzip
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from client.controller import ControllerClient
from client.phone import Phone
from dht.records.memory_directory import MemoryMesh
from protocol.instances import RELAYED_HEADER, PortBinding, StartRequest
from protocol.problems import ServiceError, ServiceUnreachable
from region_controller import relay
from region_controller.reachability import Door
from tests.fake_agent import FakeAgent
from tests.one_region import Site, a_service, node_of, running_site
from tests.waiting import until

HOSTILE = "<script>fetch('/v1/instances')</script>"


async def echo(request: web.Request) -> web.Response:
    """What came, and how; it has no idea of CORS."""
    body = await request.read()
    said = {
        "bytes": len(body),
        "length": request.headers.get("Content-Length"),
        "type": request.content_type,
        "accept": request.headers["Accept"],
        "query": request.query_string,
        "token": request.headers.get("Authorization"),
    }
    return web.json_response(said, headers={"Set-Cookie": "a=b", "Access-Control-Allow-Origin": "*"})


async def coded(request: web.Request) -> web.Response:
    """Its own coding, whether the client reads it or not; told is which headers came."""
    body = gzip.compress(msgspec.json.encode({name.lower(): value for name, value in request.headers.items()}))
    headers = {"Content-Encoding": request.query.get("as", "gzip"), "Keep-Alive": "timeout=9", "Connection": "close"}
    return web.Response(body=body, content_type="application/json", headers=headers)


async def refuse(_: web.Request) -> web.Response:
    return web.Response(status=415, text=HOSTILE, content_type="text/html")


async def move(_: web.Request) -> web.Response:
    return web.Response(status=302, headers={"Location": "http://127.0.0.1:1/"})


async def flood(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    for _ in range(3):
        await response.write(b"x" * 1000)
    return response


@asynccontextmanager
async def a_service_that_listens() -> AsyncIterator[int]:
    app = web.Application()
    for path, handler in (("/echo", echo), ("/coded", coded), ("/refuse", refuse), ("/move", move), ("/flood", flood)):
        app.router.add_post(path, handler)
    async with TestServer(app, host="127.0.0.1") as service:
        yield service.port or 0


@asynccontextmanager
async def a_started_service(folder: Path) -> AsyncIterator[tuple[Site, FakeAgent, str, dict[str, str]]]:
    """The site, the agent, the instance, and the headers of who holds it."""
    agent = FakeAgent(node_of("agent"), "eu/de")
    async with a_service_that_listens() as port, running_site(folder) as site, agent.linked(site.peer):
        await site.publish(a_service())
        async with site.phone.post("/v1/instances", json={"service": "svc"}) as response:
            answer = await response.json()
        await agent.report(answer["instance"], ports=(PortBinding(8080, port),))
        await until(lambda: site.controller.instances()[0].port == port)
        yield site, agent, answer["instance"], {"Authorization": f"Bearer {answer['lease']['token']}"}


async def invoke(site: Site, instance: str, path: str, **options: Any) -> tuple[int, bytes, Any]:
    """Status, body, headers."""
    async with site.phone.post(
        f"/v1/instances/{instance}/invoke", params={"path": path}, **{"data": b"hello", **options}
    ) as response:
        return response.status, await response.read(), response.headers


async def test_it_passes_on_the_body_and_nothing_that_a_browser_would_run(tmp_path: Path) -> None:
    async with a_started_service(tmp_path) as (site, _, instance, holds):
        asked = {**holds, "Content-Type": "image/jpeg", "Accept": "application/json"}
        status, body, headers = await invoke(site, instance, "/echo?a=1", headers=asked)
        assert status == 200
        assert headers[RELAYED_HEADER] == instance
        assert b'"bytes": 5, "length": "5", "type": "image/jpeg", "accept": "application/json", "query": "a=1"' in body
        assert b'"token": null' in body, "the lease is the controller's business"
        assert not {"Set-Cookie", "Access-Control-Allow-Origin"} & set(headers)

        status, body, headers = await invoke(site, instance, "/refuse", headers=holds)
        assert (status, body.decode()) == (415, HOSTILE)
        assert headers["Content-Security-Policy"] == "default-src 'none'; sandbox"
        assert (headers["X-Content-Type-Options"], headers["Content-Disposition"]) == ("nosniff", "attachment")


async def test_coded_bodies_pass_as_they_are_and_what_concerns_one_connection_does_not(tmp_path: Path) -> None:
    connection = {"Connection": "x-own", "X-Own": "1", "TE": "trailers", "Proxy-Authorization": "x", "Cookie": "x=y"}
    async with a_started_service(tmp_path) as (site, _, instance, holds):
        sent = gzip.compress(b"hello")
        asked = {**holds, **connection, "Content-Encoding": "gzip", "Accept-Encoding": "gzip"}
        status, body, headers = await invoke(site, instance, "/coded", headers=asked, data=sent)
        assert (status, headers["Content-Encoding"]) == (200, "gzip")
        assert "Keep-Alive" not in headers
        came = msgspec.json.decode(body)  # the client unpacks it
        assert (came["content-encoding"], came["content-length"]) == ("gzip", str(len(sent)))
        assert came["accept-encoding"] == "gzip"
        assert not {"x-own", "te", "proxy-authorization", "cookie", "authorization"} & came.keys()
        assert came.get("connection") != "x-own"

        odd = {**holds, "Content-Encoding": "gz ip"}
        assert (await invoke(site, instance, "/coded", headers=odd))[0] == 400
        assert (await invoke(site, instance, "/coded?as=gz%20ip", headers=holds))[0] == 502


async def test_only_for_who_holds_it_and_only_what_is_running(tmp_path: Path) -> None:
    async with a_started_service(tmp_path) as (site, _, instance, holds):
        assert (await invoke(site, instance, "/echo"))[0] == 401
        assert (await invoke(site, instance, "/echo", headers={"Authorization": "Bearer wrong"}))[0] == 403
        assert (await invoke(site, "0" * 16, "/echo", headers=holds))[0] == 404
        for path in ("echo", "http://127.0.0.1/", "/a b", "/a#b", "/a\r\nX: y", "/ü"):
            assert (await invoke(site, instance, path, headers=holds))[0] == 400, path
        async with site.phone.post(f"/v1/instances/{instance}/stop", headers=holds) as response:
            assert response.status == 200
        status, body, _ = await invoke(site, instance, "/echo", headers=holds)
        assert (status, b"it cannot be called" in body) == (409, True)


async def test_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "MAX_SENT", 1000)
    monkeypatch.setattr(relay, "MAX_REPLY", 2500)

    async def chunked() -> AsyncIterator[bytes]:
        yield b"hello"

    async with a_started_service(tmp_path) as (site, _, instance, holds):
        assert (await invoke(site, instance, "/echo", headers=holds, data=b"x" * 1001))[0] == 413
        assert (await invoke(site, instance, "/echo", headers=holds, data=chunked()))[0] == 400
        status, body, headers = await invoke(site, instance, "/move", headers=holds)
        assert (status, b"redirect" in body, RELAYED_HEADER in headers) == (502, True, False)
        with pytest.raises(Exception, match=r"(?i)payload|closed|reset|disconnect"):
            await invoke(site, instance, "/flood", headers=holds)


async def test_a_client_that_stops_sending_is_told_so_and_the_service_not_blamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "STALLED_S", 0.2)
    async with a_started_service(tmp_path) as (site, _, instance, holds):

        async def stalled() -> AsyncIterator[bytes]:
            yield b"hello"
            await asyncio.Event().wait()  # and no more

        status, body, _ = await invoke(
            site, instance, "/echo", headers={**holds, "Content-Length": "1000"}, data=stalled()
        )
        assert status == 400
        assert b"the call sent nothing for 0.2 s" in body


async def test_a_service_that_is_gone_is_a_problem_of_the_controller(tmp_path: Path) -> None:
    async with a_started_service(tmp_path) as (site, agent, instance, holds):
        await agent.report(instance, ports=(PortBinding(8080, 1),))
        await until(lambda: site.controller.instances()[0].port == 1)
        status, body, headers = await invoke(site, instance, "/echo", headers=holds)
        assert (status, headers.get(RELAYED_HEADER)) == (503, None)
        assert b"connection refused" in body


async def test_only_so_many_at_once(tmp_path: Path) -> None:
    async with a_started_service(tmp_path) as (site, _, instance, holds):
        answered = await asyncio.gather(
            *(invoke(site, instance, "/echo", headers=holds) for _ in range(2 * relay.MAX_CALLS))
        )
        assert {status for status, *_ in answered} <= {200, 429}
        assert sum(status == 200 for status, *_ in answered) >= relay.MAX_CALLS


async def test_a_client_goes_through_the_controller_where_no_network_leads_to_the_service(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("client.invocation.PATIENCE_S", 0.2)
    async with a_started_service(tmp_path) as (site, _, instance, holds), ControllerClient(site.rest) as client:
        answer = await client.start(
            StartRequest(service="svc", leases=(holds["Authorization"].removeprefix("Bearer "),))
        )
        assert answer.instance == instance
        elsewhere = msgspec.structs.replace(answer, url="http://127.0.0.1:1")
        reply = await client.invoke(elsewhere, "/echo?a=b c", b"hello", accept="application/json")
        said = msgspec.json.decode(reply)
        assert (said["bytes"], said["query"], said["accept"]) == (5, "a=b c", "application/json")
        with pytest.raises(ServiceError) as refused:
            await client.invoke(elsewhere, "/refuse", b"hello")
        assert refused.value.extra["answered"] == 415
        with pytest.raises(ServiceUnreachable):
            await client.invoke(elsewhere, "/echo", b"hello", method="PUT")
        foreign = msgspec.structs.replace(elsewhere, lease=msgspec.structs.replace(answer.lease, token="another's"))
        with pytest.raises(ServiceUnreachable):
            await client.invoke(foreign, "/echo", b"hello")


@pytest.mark.lan
async def test_a_phone_asks_only_the_controller_that_answered_for_the_instance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("client.invocation.PATIENCE_S", 0.2)
    options: dict[str, Any] = {"mesh": f"test-{secrets.token_hex(6)}", "interfaces": ["127.0.0.1"]}
    async with (
        a_started_service(tmp_path) as (site, _, _, _),
        Phone(url=site.rest, find_timeout_s=0.1, **options) as phone,
        Phone(url=site.rest, find_timeout_s=0.1, **options) as other,
    ):
        answer = msgspec.structs.replace(await phone.start(StartRequest(service="svc")), url="http://127.0.0.1:1")
        assert msgspec.json.decode(await phone.invoke(answer, "/echo", b"hello"))["bytes"] == 5
        with pytest.raises(ServiceUnreachable):
            await other.invoke(answer, "/echo", b"hello")


async def test_what_only_its_own_site_gets_through_to_is_called_from_controller_to_controller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "STALLED_S", 0.2)
    mesh = MemoryMesh()
    async with (
        a_service_that_listens() as port,
        running_site(tmp_path, "demo/c", mesh=mesh) as far,
        running_site(tmp_path, "demo/b", mesh=mesh) as near,
        FakeAgent(node_of("agent"), "demo/b").linked(near.peer) as agent,
        ControllerClient(far.rest) as client,
    ):
        agent.service = PortBinding(8080, port)
        await near.publish(a_service())
        far.controller.relay._doors._known[near.controller.identity.node, "127.0.0.1"] = Door.SHUT, float("inf")
        answer = await client.start(StartRequest(service="svc"))
        assert (answer.region, answer.reach, answer.relay) == (
            "demo/b",
            "relay",
            f"/v1/instances/{answer.instance}/invoke",
        )
        said = msgspec.json.decode(await client.invoke(answer, "/echo?a=b c&d=%26", b"hello", accept="text/plain"))
        assert (said["bytes"], said["query"], said["accept"]) == (5, "a=b c&d=%26", "text/plain")
        with pytest.raises(ServiceError) as refused:
            await client.invoke(answer, "/refuse", b"hello")
        assert refused.value.extra["answered"] == 415
        with pytest.raises(ServiceUnreachable, match="only what is POSTed"):
            await client.invoke(answer, "/echo")

        holds = {"Authorization": f"Bearer {answer.lease.token}"}
        assert (await invoke(far, answer.instance, "/echo", headers={"Authorization": "Bearer wrong"}))[0] == 403
        stalled = {**holds, "Content-Length": "1000"}
        status, body, _ = await invoke(far, answer.instance, "/echo", headers=stalled, data=held_back())
        assert (status, b"the call sent nothing for 0.2 s" in body) == (400, True)
        await agent.report(answer.instance, ports=(PortBinding(8080, 1),))
        await until(lambda: near.controller.instances()[0].port == 1)
        status, body, headers = await invoke(far, answer.instance, "/echo", headers=holds)
        assert (status, headers.get(RELAYED_HEADER)) == (503, None)


async def held_back() -> AsyncIterator[bytes]:
    yield b"hello"
    await asyncio.Event().wait()  # and no more
