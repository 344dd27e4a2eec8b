"""Nodes as processes, on loopback: the store from any site, and the words in which a mesh says no."""

from __future__ import annotations

import hashlib
import re
import socket
from contextlib import ExitStack
from pathlib import Path

import aiohttp
import pytest

from node.local_mesh import Site, up
from protocol.problems import Problem, Unavailable
from tests.local_sites import WORD_COUNT, ask, refusal, running_sites, service_folder, slug
from tests.waiting import until

pytestmark = pytest.mark.lan


def store_site(folder: Path, name: str) -> Site:
    return Site(name, f"test/{name}", folder / name, roles=("controller", "store"))


async def test_publish_search_show_fetch_withdraw_from_any_site(tmp_path: Path) -> None:
    a, b = store_site(tmp_path, "a"), store_site(tmp_path, "b")
    async with running_sites(a, b):
        archive = tmp_path / "wc.csar"
        await a.cornerstore("pack", str(WORD_COUNT), "-o", str(archive))
        digest = "sha256:" + hashlib.sha256(archive.read_bytes()).hexdigest()
        published = await ask(a, "publish", str(archive))
        assert published["digest"] == digest

        async def found_at_b() -> bool:
            return [s["digest"] for s in await ask(b, "search", "--category", "/text")] == [digest]

        await until(found_at_b, timeout_s=5)
        assert (await ask(b, "show", digest))["id"] == "wc01"
        copy = tmp_path / "copy.csar"
        await b.cornerstore("fetch", digest, "-o", str(copy))
        assert copy.read_bytes() == archive.read_bytes()

        stranger = await refusal(b, "withdraw", "wc01")
        assert slug(stranger) == "forbidden"
        await a.cornerstore("--controller", b.running.rest, "withdraw", "wc01")
        assert await ask(b, "search", "--category", "/text") == []

        async def gone_at_a() -> bool:
            return await ask(a, "search", "--category", "/text") == []

        await until(gone_at_a, timeout_s=5)
        assert slug(await refusal(a, "show", digest)) == "no-matching-service"


async def test_seeding_what_is_published_makes_no_second_record(tmp_path: Path) -> None:
    a, b = store_site(tmp_path, "a"), store_site(tmp_path, "b")
    async with running_sites(a, b):
        published = await ask(a, "publish", str(WORD_COUNT))
        copy = tmp_path / "copy.csar"
        await b.cornerstore("fetch", "wc01", "-o", str(copy))
        assert [s["digest"] for s in await ask(b, "seed", str(copy))] == [published["digest"]]
        assert await ask(b, "search") == [published]
        await a.cornerstore("withdraw", "wc01")
        assert await ask(a, "search") == []


async def test_a_record_and_its_content_outlive_the_publisher_once_another_site_has_it(tmp_path: Path) -> None:
    a, b, c = (store_site(tmp_path, name) for name in "abc")
    async with running_sites(a, b, c):
        published = await ask(a, "publish", str(WORD_COUNT))
        await b.cornerstore("fetch", "wc01", "-o", str(tmp_path / "b.csar"))
        await a.stop()
        await c.cornerstore("fetch", published["digest"], "-o", str(tmp_path / "c.csar"))
        assert (tmp_path / "c.csar").read_bytes() == (tmp_path / "b.csar").read_bytes()


async def test_records_and_content_are_there_after_a_restart(tmp_path: Path) -> None:
    a = store_site(tmp_path, "a")
    async with running_sites(a):
        published = await ask(a, "publish", str(WORD_COUNT))
        await a.stop()
        async with up(a):
            assert [s["id"] for s in await ask(a, "search")] == ["wc01"]
            await a.cornerstore("fetch", published["digest"], "-o", str(tmp_path / "x.csar"))


async def test_the_words_in_which_a_mesh_says_no(tmp_path: Path) -> None:
    a, b = store_site(tmp_path, "a"), store_site(tmp_path, "b")
    async with running_sites(a, b):
        assert slug(await refusal(a, "start", "nothing-of-that-name")) == "no-matching-service"
        assert slug(await refusal(a, "start", "--category", "/image", "--input", "image")) == "no-matching-service"
        assert slug(await refusal(a, "start", "sha256:" + "0" * 64)) == "no-matching-service"
        assert slug(await refusal(a, "stop", "no-such-instance")) == "no-such-instance"

        # Two publishers, one id: the answer lists both.
        await ask(a, "publish", str(WORD_COUNT))
        await ask(b, "publish", str(service_folder(tmp_path, name="wc01", dockerfile="FROM scratch\n")))

        async def both_known() -> bool:
            return len(await ask(a, "search", "--id", "wc01")) == 2

        await until(both_known, timeout_s=5)
        ambiguous = await refusal(a, "start", "wc01")
        assert slug(ambiguous) == "ambiguous-service"
        assert {c["name"] for c in ambiguous["candidates"]} == {"wordcount", "wc01"}

        # No agent anywhere: each region says why.
        nowhere = await refusal(a, "start", "wordcount")
        assert slug(nowhere) == "no-capacity"
        assert set(nowhere["regions"]) == {"test/a", "test/b"}


async def test_a_named_port_that_is_taken_is_refused_with_its_fix(tmp_path: Path) -> None:
    a = store_site(tmp_path, "a")
    await a.found("test")
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        config = a.data_dir / "config.toml"
        config.write_text(config.read_text().replace("[network]", f"[network]\nrest_port = {port}"))
        with pytest.raises(Unavailable) as caught:
            await a.start()
        await a.stop()
    assert str(port) in caught.value.detail
    assert "port-taken" in caught.value.detail
    assert "config.toml" in caught.value.detail


async def test_a_second_node_from_the_same_data_is_refused(tmp_path: Path) -> None:
    a = store_site(tmp_path, "a")
    async with running_sites(a):
        with pytest.raises(Problem, match="already"):
            await a.cornerstore("up")


async def test_a_crowd_of_idle_connections_locks_nobody_out_and_is_counted(tmp_path: Path) -> None:
    a = store_site(tmp_path, "a")
    await a.found("test")
    config = a.data_dir / "config.toml"
    config.write_text(re.sub(r"(max_connections_per_address = )\d+", r"\g<1>6", config.read_text()))
    async with up(a), aiohttp.ClientSession() as session:
        with ExitStack() as crowd:
            half_said = {a.running.rest.removeprefix("http://"): b"G", a.running.peer: b"\x16"}
            for address, beginning in half_said.items():
                host, _, port = address.rpartition(":")
                for _ in range(20):
                    crowd.enter_context(socket.create_connection((host, int(port)))).send(beginning)
            assert await ask(a, "search") == []
            async with session.get(f"{a.running.rest}/metrics") as response:
                series = re.compile(r'^(cornerstore_connections\S*)\{listener="phones"\} (\d+)', re.MULTILINE)
                counted = dict(series.findall(await response.text()))
    assert int(counted["cornerstore_connections"]) <= 6
    assert int(counted["cornerstore_connections_made_room_total"]) >= 14
    assert counted["cornerstore_connections_refused_total"] == "0"
