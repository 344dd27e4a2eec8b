"""The REST table as a phone, a developer and an operator meet it: statuses, headers, problems, uploads, streams."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing
from pathlib import Path
from typing import Any

import msgspec
import pytest
from yarl import URL

from client.controller import ControllerClient
from dht.records.memory_directory import MemoryMesh
from dht.swarm.memory_content import Swarm
from protocol.events import AgentLost, News, Snapshot, Started
from protocol.instances import AgentView, InstanceView, Progress, StartAnswer, StartRequest
from protocol.problems import StartFailed
from protocol.records import last_moment, raw_public_key, service_record, sign
from protocol.service import ServiceDescriptor
from region_controller import client_routes
from region_controller.openapi import NODE_OPERATIONS, OPERATIONS, describe_api
from tests.fake_agent import FakeAgent
from tests.one_region import OPERATOR, PUBLISHER, Site, a_service, an_archive, key_of, node_of, running_site
from tests.waiting import until

OPERATES = {"Authorization": f"Bearer {OPERATOR}"}
WORD_COUNT = ServiceDescriptor(
    id="wc01",
    name="wordcount",
    kind="docker_container",
    category="/text/count",
    mem_requirement=64,
    entry="x.yaml",
    inputs=("text",),
    outputs=("integer",),
)


async def call(site: Site, method: str, path: str, **options: Any) -> tuple[int, Any, Any]:
    """Status, body from JSON, headers."""
    async with site.phone.request(method, path, **options) as response:
        data = await response.read()
        return response.status, msgspec.json.decode(data) if data else None, response.headers


def signed_header(data: bytes, key: Any = PUBLISHER, **changes: Any) -> dict[str, str]:
    digest = "sha256:" + hashlib.sha256(data).hexdigest()
    now = time.time()
    seq = int(now * 1000)
    record = service_record(
        WORD_COUNT,
        digest=digest,
        size=len(data),
        publisher=raw_public_key(key),
        seq=seq,
        expiry=last_moment("service", seq) if changes.get("withdrawn") else int(now) + 3600,
    )
    envelope = sign(msgspec.structs.replace(record, **changes), key).envelope
    return {"Cornerstore-Record": base64.urlsafe_b64encode(envelope).decode().rstrip("=")}


async def test_start_over_rest(tmp_path: Path) -> None:
    agent = FakeAgent(node_of("agent"), "eu/de")
    async with running_site(tmp_path) as site, agent.linked(site.peer):
        await site.publish(a_service())
        status, cold, headers = await call(site, "POST", "/v1/instances", json={"service": "svc"})
        assert status == 201
        assert headers["Location"] == f"/v1/instances/{cold['instance']}"
        status, warm, _ = await call(site, "POST", "/v1/instances", json={"service": "svc"})
        assert (status, warm["start"]) == (200, "warm")
        path = headers["Location"]
        assert (await call(site, "GET", path))[1]["state"] == "running"
        assert len((await call(site, "GET", "/v1/instances"))[1]) == 1
        status, problem, headers = await call(site, "POST", path + "/stop")
        assert (status, problem["type"].rpartition("/")[2]) == (401, "key-needed")
        token = {"Authorization": f"Bearer {warm['lease']['token']}"}
        assert (await call(site, "POST", path + "/alive", headers=token, json={"alive_time": 99}))[0] == 200
        assert (await call(site, "POST", path + "/alive", headers=token))[0] == 200
        assert (await call(site, "POST", path + "/stop", headers=OPERATES))[1]["state"] == "stopped"
        assert (await call(site, "POST", path + "/restart", headers=token))[1]["state"] == "running"
        assert (await call(site, "DELETE", path, headers=OPERATES))[1]["state"] == "removed"
        status, problem, _ = await call(site, "GET", path)
        assert (status, problem["reason"]) == (410, "removed-by-operator")
        assert (await call(site, "GET", "/v1/agents"))[1][0]["memory_free"] == 1000
        assert (await call(site, "GET", "/v1/healthz"))[1]["agents"] == 1
        assert (await call(site, "GET", "/v1/regions"))[1][0]["relation"] == "self"


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b'{"service": "svc", "colour": "red"}', "colour"),
        (b'{"service": "svc", "category": "/text"}', "names a service"),
        (b"{}", "names a service"),
        (b'{"service": "svc", "wait_s": -1}', "wait_s"),
        (b'{"category": "text"}', "not a category"),
        (b"{", "not JSON"),
        (b'"text"', "not a StartRequest"),
    ],
)
async def test_what_is_not_understood_is_refused_by_name(tmp_path: Path, body: bytes, says: str) -> None:
    async with running_site(tmp_path) as site:
        status, problem, _ = await call(site, "POST", "/v1/instances", data=body)
        assert status == 400
        assert says in problem["detail"]


async def test_bounds_and_unknown_queries(tmp_path: Path) -> None:
    async with running_site(tmp_path) as site:
        assert (await call(site, "POST", "/v1/instances", data=b" " * 70_000))[0] == 413
        status, problem, _ = await call(site, "GET", "/v1/services?colour=red")
        assert status == 400
        assert "colour" in problem["detail"]
        assert "category, cursor, id, input, limit, output, q" in problem["fix"]


async def test_no_match_and_no_capacity(tmp_path: Path) -> None:
    async with running_site(tmp_path) as site:
        await site.publish(a_service())
        status, problem, headers = await call(site, "POST", "/v1/instances", json={"service": "svc"})
        assert status == 503
        assert problem["regions"] == {"eu/de": "it has no agents"}
        assert "Retry-After" in headers
        status, problem, _ = await call(site, "POST", "/v1/instances", json={"service": "swc"})
        assert (status, problem["type"].rpartition("/")[2]) == (404, "no-matching-service")
        assert problem["near"] == ["svc"]


async def test_progress_is_streamed(tmp_path: Path) -> None:
    agent = FakeAgent(node_of("agent"), "eu/de")
    async with running_site(tmp_path) as site, agent.linked(site.peer):
        await site.publish(a_service())
        accept = {"Accept": "text/event-stream"}

        async def events() -> list[tuple[str, bytes]]:
            async with site.phone.post("/v1/instances", json={"service": "svc"}, headers=accept) as response:
                assert response.content_type == "text/event-stream"
                blocks = (await response.read()).decode().strip().split("\n\n")
            lines = [b.split("\n") for b in blocks]
            return [(name.removeprefix("event: "), data.removeprefix("data: ").encode()) for name, data in lines]

        agent.failures.append(StartFailed("it crashed"))
        assert (await events())[-1][0] == "problem"
        seen = await events()
        assert [name for name, _ in seen] == ["progress"] * 3 + ["result"]
        assert msgspec.json.decode(seen[2][1], type=Progress).phase == "build"
        assert msgspec.json.decode(seen[3][1], type=StartAnswer).start == "cold"


async def test_what_happens_in_the_region_is_told_live(tmp_path: Path) -> None:
    agent = FakeAgent(node_of("agent"), "eu/de")
    async with AsyncExitStack() as stack:
        site = await stack.enter_async_context(running_site(tmp_path))
        client = await stack.enter_async_context(ControllerClient(site.rest))
        await site.publish(a_service())
        told: asyncio.Queue[News] = asyncio.Queue()

        async def listen() -> None:
            async for news in client.events():
                told.put_nowait(news)

        listening = asyncio.create_task(listen())
        stack.push_async_callback(cancelled, listening)

        async def until_told(kind: type[News]) -> list[News]:
            """All that is told, up to the first of that kind."""
            heard: list[News] = []
            async with asyncio.timeout(10):
                while not heard or not isinstance(heard[-1], kind):
                    heard.append(await told.get())
            return heard

        assert await until_told(Snapshot) == [Snapshot((), ())]
        async with agent.linked(site.peer):
            await until_told(AgentView)
            answer = await client.start(StartRequest(service="svc"))
            heard = await until_told(Started)
            assert [news.state for news in heard if isinstance(news, InstanceView)] == ["starting", "running"]
            assert [news.memory_free for news in heard if isinstance(news, AgentView)] == [900]
            assert [news.instance for news in heard if isinstance(news, Started)] == [answer.instance]
        assert await until_told(AgentLost) == [AgentLost(agent.node)]
        assert [news.state for news in await until_told(InstanceView) if isinstance(news, InstanceView)] == ["unknown"]


async def cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_client_that_asks_too_fast_is_told_when_to_come_back(tmp_path: Path) -> None:
    agent = FakeAgent(node_of("agent"), "eu/de")
    async with running_site(tmp_path, starts_burst=2, starts_per_client_s=0.1) as site, agent.linked(site.peer):
        await site.publish(a_service())
        answers = [await call(site, "POST", "/v1/instances", json={"service": "svc"}) for _ in range(3)]
        assert [status for status, _, _ in answers] == [201, 200, 429]
        _, problem, headers = answers[-1]
        assert (problem["type"].rpartition("/")[2], float(headers["Retry-After"])) == ("too-many-requests", 1)
        assert (await call(site, "GET", "/v1/instances"))[0] == 200, "looking costs nothing"


async def test_a_log_is_for_who_holds_the_instance(tmp_path: Path) -> None:
    async with running_site(tmp_path) as site, FakeAgent(node_of("agent"), "eu/de").linked(site.peer):
        await site.publish(a_service())
        _, answer, headers = await call(site, "POST", "/v1/instances", json={"service": "svc"})
        log, holder = headers["Location"] + "/log", {"Authorization": f"Bearer {answer['lease']['token']}"}
        _, read, _ = await call(site, "GET", log + "?lines=3", headers=holder)
        assert read == {"instance": answer["instance"], "lines": ["line 0", "line 1", "line 2"]}
        assert len((await call(site, "GET", log, headers=OPERATES))[1]["lines"]) == 100
        assert (await call(site, "GET", log))[0] == 401
        for lines in ("0", "401", "-1", "many", "9" * 40):
            assert (await call(site, "GET", f"{log}?lines={lines}", headers=holder))[0] == 400


async def test_leaving_a_stream_leaves_the_start(tmp_path: Path) -> None:
    agent = FakeAgent(node_of("agent"), "eu/de")
    async with running_site(tmp_path) as site, agent.linked(site.peer):
        await site.publish(a_service())
        agent.gate.clear()
        accept = {"Accept": "text/event-stream"}
        async with site.phone.post("/v1/instances", json={"service": "svc"}, headers=accept) as response:
            await response.content.readuntil(b"\n\n")
            await until(lambda: agent.starts)
        agent.gate.set()
        await until(lambda: site.controller.instances()[0].state == "running")
        assert len(agent.starts) == 1


async def test_publish_search_fetch_withdraw(tmp_path: Path) -> None:
    mesh, swarm = MemoryMesh(), Swarm()
    data = an_archive(tmp_path, WORD_COUNT)
    async with (
        running_site(tmp_path, "demo/a", mesh=mesh, swarm=swarm) as a,
        running_site(tmp_path, "demo/b", mesh=mesh, swarm=swarm) as b,
    ):
        status, problem, _ = await call(a, "POST", "/v1/services", data=data)
        assert (status, problem["type"].rpartition("/")[2]) == (401, "key-needed")
        status, view, headers = await call(a, "POST", "/v1/services", data=data, headers=signed_header(data))
        assert (status, view["id"], view["size"]) == (201, "wc01", len(data))
        assert headers["Location"] == f"/v1/services/{view['digest']}"
        assert not list((tmp_path / "demo-a" / "spool").iterdir())

        assert (await call(b, "GET", headers["Location"]))[1] == view
        for query in ("category=/text", "input=text&output=integer", "id=wc01", "q=WordC", ""):
            assert (await call(b, "GET", f"/v1/services?{query}"))[1] == [view], query
        for query in ("category=/image", "input=sound", "id=wc02", "q=nothing"):
            assert (await call(b, "GET", f"/v1/services?{query}"))[1] == [], query
        tree = (await call(b, "GET", "/v1/categories"))[1]
        assert tree["services"] == 1
        assert tree["children"][0]["children"][0]["category"] == "/text/count"
        assert (await call(b, "GET", "/v1/categories?category=/text"))[1] == tree["children"][0]
        events = {"Accept": "text/event-stream"}
        async with b.phone.get(f"/v1/content/{view['digest']}", headers=events) as response:
            assert response.content_type == "text/event-stream"
            told = (await response.text()).split("\n\n")
            assert "from 1 peer" in told[0], "how it comes through the mesh"
            assert told[-2].startswith("event: result")
            assert view["digest"] in told[-2]
        assert b.content.has(view["digest"])
        async with b.phone.get(f"/v1/content/{'sha256:' + '0' * 64}", headers=events) as response:
            assert "event: problem" in await response.text()
        async with b.phone.get(f"/v1/content/{view['digest']}") as response:
            assert await response.read() == data
            assert response.content_type == "application/zip"

        path = headers["Location"]
        assert (await call(a, "DELETE", path))[0] == 401
        assert (await call(a, "DELETE", path, headers=OPERATES))[0] == 403
        assert (await call(a, "DELETE", path, headers=signed_header(data)))[0] == 422
        stranger = signed_header(data, key_of("stranger"), withdrawn=True)
        assert (await call(a, "DELETE", path, headers=stranger))[0] == 403
        assert (await call(a, "DELETE", path, headers=signed_header(data, withdrawn=True)))[0] == 200
        assert (await call(a, "GET", path))[0] == 404
        assert not a.content.has(view["digest"])


async def test_a_body_that_does_not_arrive_holds_no_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("region_controller.api.BODY_S", 0.05)

    async def half() -> AsyncIterator[bytes]:
        yield b'{"service": '
        await asyncio.Event().wait()

    async with running_site(tmp_path) as site:
        status, problem, _ = await call(site, "POST", "/v1/instances", data=half())
        assert (status, problem["type"].rpartition("/")[2]) == (400, "bad-request")
        assert "did not arrive" in problem["detail"]


async def test_long_lists_are_answered_in_pages(tmp_path: Path) -> None:
    async with running_site(tmp_path) as site:
        now = int(time.time() * 1000)
        for n in range(5):
            await site.publish(a_service(f"svc{n}", seq=now - n, inputs=["a+b", "c"]))
        path, totals, shown = "/v1/services?limit=2&input=a%2Bb&input=c", [], []
        while path:
            async with site.phone.get(URL(path, encoded=True)) as response:
                totals.append(response.headers["X-Total-Count"])
                shown += [view["id"] for view in await response.json()]
                path = str(response.links["next"]["url"]) if "next" in response.links else ""
            if not totals[1:]:
                site.controller.catalogue.published(a_service("new", seq=now + 1, inputs=["a+b", "c"]))
        assert shown == [f"svc{n}" for n in range(5)], "what is new belongs to the first page"
        assert totals == ["5", "6", "6"]
        for listed in ("services", "instances", "agents", "regions"):
            for query, kind in (("limit=1001", "bad-limit"), ("cursor=nonsense", "bad-cursor")):
                status, problem, _ = await call(site, "GET", f"/v1/{listed}?{query}")
                assert (status, problem["type"].rpartition("/")[2]) == (400, kind), listed
                assert "page" in problem["fix"]


async def test_a_large_region_is_told_live_in_more_than_one_event(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("region_controller.region.MAX_IN_SNAPSHOT", 2)
    async with AsyncExitStack() as stack:
        site = await stack.enter_async_context(running_site(tmp_path))
        client = await stack.enter_async_context(ControllerClient(site.rest))
        for n in range(3):
            await stack.enter_async_context(FakeAgent(node_of(f"agent{n}"), "eu/de").linked(site.peer))
        async with asyncio.timeout(10), aclosing(client.events()) as events:
            first, second = await anext(events), await anext(events)
        assert isinstance(first, Snapshot)
        assert isinstance(second, AgentView)
        assert {view.node for view in (*first.agents, second)} == {node_of(f"agent{n}") for n in range(3)}
        assert len(first.agents) == 2


async def test_agents_and_regions_come_in_pages_too(tmp_path: Path) -> None:
    async with running_site(tmp_path) as site, AsyncExitStack() as stack:
        for n in range(3):
            await stack.enter_async_context(FakeAgent(node_of(f"agent{n}"), "eu/de").linked(site.peer))
        nodes = sorted(node_of(f"agent{n}") for n in range(3))
        async with site.phone.get("/v1/agents?limit=2") as response:
            assert [view["node"] for view in await response.json()] == nodes[:2]
            rest = response.links["next"]["url"]
        async with site.phone.get(rest) as response:
            assert [view["node"] for view in await response.json()] == nodes[2:]
            assert "next" not in response.links
        status, views, headers = await call(site, "GET", "/v1/regions")
        assert (status, [view["relation"] for view in views], headers["X-Total-Count"]) == (200, ["self"], "1")


async def test_an_upload_repeated_is_the_same_and_an_older_record_takes_nothing_away(tmp_path: Path) -> None:
    data = an_archive(tmp_path, WORD_COUNT)
    async with running_site(tmp_path) as site:
        headers = signed_header(data)
        first = await call(site, "POST", "/v1/services", data=data, headers=headers)
        again = await call(site, "POST", "/v1/services", data=data, headers=headers)
        assert (first[0], again[0]) == (201, 201)
        assert first[1] == again[1]
        assert (await call(site, "POST", "/v1/services", data=data, headers=signed_header(data, seq=7)))[0] == 422
        assert site.content.has(first[1]["digest"])
        assert (await call(site, "GET", "/v1/services"))[1] == [first[1]]


async def test_the_sites_own_key_publishes_for_operators(tmp_path: Path) -> None:
    data = an_archive(tmp_path, WORD_COUNT)
    async with running_site(tmp_path) as site:
        status, view, _ = await call(site, "POST", "/v1/services", data=data, headers=OPERATES)
        assert (status, view["publisher"]) == (201, raw_public_key(key_of("site")).hex())
        assert (await call(site, "DELETE", f"/v1/services/{view['digest']}", headers=OPERATES))[0] == 200
        assert (await call(site, "GET", "/v1/services"))[1] == []


async def test_what_is_published_already_is_kept_without_a_second_record(tmp_path: Path) -> None:
    data = an_archive(tmp_path, WORD_COUNT)
    async with running_site(tmp_path) as site:
        header = signed_header(data)
        _, first, _ = await call(site, "POST", "/v1/services", data=data, headers=header)
        status, view, _ = await call(site, "POST", "/v1/services", data=data, headers=OPERATES)
        assert (status, view) == (201, first)
        assert (await call(site, "GET", "/v1/services"))[1] == [first]
        gone = await call(
            site, "DELETE", f"/v1/services/{first['digest']}", headers=signed_header(data, withdrawn=True)
        )
        assert gone[0] == 200, "its publisher can still withdraw it"
        assert (await call(site, "GET", "/v1/services"))[1] == []
        assert site.content.held() == [first["digest"]], "but who seeds it keeps it"


async def test_uploads_that_are_refused(tmp_path: Path) -> None:
    data = an_archive(tmp_path, WORD_COUNT)
    async with running_site(tmp_path) as site:

        async def refused(body: bytes, headers: dict[str, str]) -> tuple[int, str]:
            status, problem, _ = await call(site, "POST", "/v1/services", data=body, headers=headers)
            return status, problem["detail"]

        assert (await refused(b"x" * 100_001, OPERATES))[0] == 413
        assert (await refused(b"", OPERATES))[0] == 400
        assert (await refused(b"not a zip", OPERATES))[0] == 422
        status, detail = await refused(data, signed_header(data, mem=1))
        assert status == 422
        assert "mem is 64, not 1" in detail
        assert (await refused(data, signed_header(data + b"x")))[0] == 422
        assert (await refused(data, signed_header(data, expiry=5)))[0] == 422
        assert (await refused(data, signed_header(data, withdrawn=True)))[0] == 422
        assert (await refused(data, {"Cornerstore-Record": "!"}))[0] == 422
        assert site.content.held() == []
        assert not list((tmp_path / "eu-de" / "spool").iterdir())


async def test_only_so_many_archives_come_and_go_at_once(tmp_path: Path) -> None:
    data = an_archive(tmp_path, WORD_COUNT)
    async with running_site(tmp_path, max_uploads=1, max_downloads=1) as site:
        arrived, finish = asyncio.Event(), asyncio.Event()

        async def slowly() -> AsyncIterator[bytes]:
            yield data[:10]
            arrived.set()
            await finish.wait()
            yield data[10:]

        first = asyncio.create_task(call(site, "POST", "/v1/services", data=slowly(), headers=OPERATES))
        await arrived.wait()
        await until(lambda: list((tmp_path / "eu-de").rglob("*.csar")))
        status, problem, headers = await call(site, "POST", "/v1/services", data=data, headers=OPERATES)
        assert (status, problem["type"].rpartition("/")[2]) == (429, "too-many-requests")
        assert float(headers["Retry-After"]) > 0
        finish.set()
        status, view, _ = await first
        assert status == 201

        async with site.controller.publishing.archive(view["digest"]):
            assert (await call(site, "GET", f"/v1/content/{view['digest']}"))[0] == 429
        async with site.phone.get(f"/v1/content/{view['digest']}") as download:
            assert await download.read() == data


async def test_openapi_and_routes_agree(tmp_path: Path) -> None:
    async with running_site(tmp_path) as site:
        status, document, _ = await call(site, "GET", "/openapi.json")
        assert status == 200
        described = {(m.upper(), path) for path, item in document["paths"].items() for m in item}
        served = {(r.method, r.path) for r in client_routes(site.controller)}
        beside = {(o.method, o.path) for o in NODE_OPERATIONS}
        assert described == served | beside
        assert document == msgspec.json.decode(msgspec.json.encode(describe_api(document["info"]["version"])))
        text = msgspec.json.encode(document).decode()
        for name in document["components"]["schemas"]:
            assert f"#/components/schemas/{name}" in text
        for operation in OPERATIONS:
            answered = document["paths"][operation.path][operation.method.lower()]["responses"]
            assert set(answered) == {str(s) for s in (*operation.answers, *operation.problems)}


async def test_many_at_once_are_answered(tmp_path: Path) -> None:
    agent = FakeAgent(node_of("agent"), "eu/de")
    async with running_site(tmp_path) as site, agent.linked(site.peer):
        await site.publish(a_service())
        answers = await asyncio.gather(
            *(call(site, "POST", "/v1/instances", json={"service": "svc"}) for _ in range(50))
        )
        assert sorted(status for status, _, _ in answers) == [200] * 49 + [201]
        assert len(agent.starts) == 1
