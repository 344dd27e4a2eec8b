"""WebAssembly instances: limits, hostile modules, requests side by side, and what outlives the node."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import msgspec
import pytest

from agent.runtime import Condition, Source, Workload
from agent.wasm.engine import MAX_ANSWER
from agent.wasm.hosting import MAX_DEATHS
from agent.wasm.modules import WasmModules
from agent.wasm.runtime import WasmRuntime, running_wasm
from agent.wasm.service import MAX_BODY
from csar import extract_file
from protocol.problems import BuildFailed, EngineUnavailable, StartFailed
from protocol.service import Artifact, ServiceDescriptor, Variant
from tests.agent_stage import Shelf
from tests.waiting import until
from tests.wasm_stage import HELLO, MODULE, SPIN, command, says, wat

OUT = "(i32.const 1)"
ECHO = command(
    f"""(local $n i32)
    (call $write {OUT} (i32.const 16) (i32.const 26))
    (block $end (loop $more
      (i32.store (i32.const 0) (i32.const 1024)) (i32.store (i32.const 4) (i32.const 32768))
      (br_if $end (call $fd_read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8)))
      (br_if $end (i32.eqz (local.tee $n (i32.load (i32.const 8)))))
      (call $write {OUT} (i32.const 1024) (local.get $n))
      (br $more)))""",
    {16: "Content-Type: text/plain\\n\\n"},
)


class Stage:
    def __init__(self, runtime: WasmRuntime, shelf: Shelf) -> None:
        self.runtime = runtime
        self.shelf = shelf

    def source(self, text: str, **changes: object) -> Source:
        descriptor = msgspec.structs.replace(MODULE, **changes)
        return self.source_of(descriptor, {"m.wasm": wat(text)})

    def source_of(self, descriptor: ServiceDescriptor, files: Mapping[str, bytes]) -> Source:
        digest = self.shelf.put(descriptor, files)
        return Source(descriptor=descriptor, digest=digest, archive=self.shelf.here[digest])

    async def start(self, source: Source, instance: str = "one") -> str:
        """The instance's URL."""
        image = await self.runtime.prepare(source)
        workload = Workload(
            instance=instance,
            digest=source.digest,
            image=image,
            mem=source.descriptor.mem_requirement,
            ports=source.descriptor.ports,
        )
        seen = await self.runtime.start(workload)
        host, port = seen.upstream(8080) or ("", 0)
        return f"http://{host}:{port}/"


@asynccontextmanager
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    async with running_wasm(tmp_path / "wasm", extract_file) as runtime:
        yield Stage(runtime, Shelf(tmp_path))


async def post(url: str, body: bytes = b"", **options: object) -> tuple[int, bytes]:
    async with aiohttp.ClientSession() as session, session.post(url, data=io.BytesIO(body), **options) as response:  # type: ignore[arg-type]
        return response.status, await response.read()


async def problem(url: str, body: bytes = b"") -> tuple[int, str]:
    async with aiohttp.ClientSession() as session, session.post(url, data=io.BytesIO(body)) as response:
        assert response.content_type == "application/problem+json"
        return response.status, (await response.json())["detail"]


async def test_a_body_comes_back_whole(tmp_path: Path) -> None:
    async with stage(tmp_path) as s:
        url = await s.start(s.source(ECHO))
        for size in (0, 1, 100_000, MAX_ANSWER - 26):
            body = os.urandom(size)
            assert await post(url, body) == (200, body)
        assert await post(url, b"expected", expect100=True) == (200, b"expected")


async def test_too_much_is_refused_in_both_directions(tmp_path: Path) -> None:
    async with stage(tmp_path) as s:
        url = await s.start(s.source(ECHO))
        assert (await problem(url, bytes(MAX_ANSWER + 1)))[0] == 413
        async with aiohttp.ClientSession() as session:
            headers = {"Content-Length": str(MAX_BODY + 1)}
            async with session.post(url, headers=headers, data=b"", expect100=True) as response:
                assert response.status == 413


async def test_a_request_that_spins_ends_with_its_time_and_the_instance_goes_on(tmp_path: Path) -> None:
    async with stage(tmp_path) as s:
        url = await s.start(s.source(SPIN, timeout=0.2))
        began = time.monotonic()
        status, detail = await problem(url)
        assert (status, "longer than the 0.2 s" in detail) == (504, True)
        assert 0.2 <= time.monotonic() - began < 2
        seen = await s.runtime.inspect("one")
        assert seen is not None
        assert seen.condition is Condition.RUNNING
        assert any("0.2 s" in line for line in await s.runtime.logs("one"))


async def test_fuel_ends_a_request(tmp_path: Path) -> None:
    async with stage(tmp_path) as s:
        url = await s.start(s.source(SPIN, fuel=100_000, timeout=60.0))
        status, detail = await problem(url)
        assert (status, "100000 instructions" in detail) == (504, True)


async def test_memory_grows_no_further_than_described(tmp_path: Path) -> None:
    """16 MB for four requests at once: 61 pages each. The module has one, gets 60 more, and then none."""
    grow = (
        "(if (i32.or (i32.eq (memory.grow (i32.const 60)) (i32.const -1))"
        " (i32.ne (memory.grow (i32.const 1)) (i32.const -1))) (then (unreachable)))"
        "(call $write (i32.const 1) (i32.const 16) (i32.const 13))"
    )
    async with stage(tmp_path) as s:
        url = await s.start(s.source(command(grow, {16: "Status: 204\\n\\n"})))
        assert (await post(url))[0] == 204


async def test_a_module_that_begins_with_more_memory_than_it_may_have_does_not_start(tmp_path: Path) -> None:
    async with stage(tmp_path) as s:
        greedy = HELLO.replace('(memory (export "memory") 1)', '(memory (export "memory") 400)')
        with pytest.raises(StartFailed, match="26214400"):
            await s.start(s.source(greedy))
        assert await s.runtime.adopt() == []


@pytest.mark.parametrize(
    "start",
    [
        "(unreachable)",
        "(call $proc_exit (i32.const 3))",
        "(drop (i32.load (i32.const 100000000)))",
        "(call $write (i32.const 2) (i32.const 16) (i32.const 5))",
    ],
)
async def test_a_module_that_fails_costs_its_client_an_error_and_nobody_else(tmp_path: Path, start: str) -> None:
    async with stage(tmp_path) as s:
        url = await s.start(s.source(command(start, {16: "oops\\n"})))
        assert (await problem(url))[0] == 502
        good = await s.start(s.source(HELLO), "two")
        assert await post(good) == (200, b"hello")


async def test_standard_error_is_the_log(tmp_path: Path) -> None:
    writes = (
        "(call $write (i32.const 2) (i32.const 64) (i32.const 8))"
        "(call $write (i32.const 2) (i32.const 72) (i32.const 5))"
        + f"(call $write {OUT} (i32.const 16) (i32.const 13))"
    )
    async with stage(tmp_path) as s:
        url = await s.start(s.source(command(writes, {16: "Status: 204\\n\\n", 64: "first\\nsecond\\n"})))
        assert (await post(url))[0] == 204
        assert await s.runtime.logs("one") == ("first", "second")
        assert await s.runtime.logs("one", 1) == ("second",)


async def test_a_module_cannot_wait_nor_open_files(tmp_path: Path) -> None:
    """poll_oneoff answers ENOSYS (52) at once; opening `/` below any of the first descriptors fails."""
    tries = (
        "(if (i32.ne (call $poll_oneoff (i32.const 64) (i32.const 128) (i32.const 1) (i32.const 8)) (i32.const 52))"
        " (then (unreachable)))"
    )
    for descriptor in range(6):
        tries += (
            f"(if (i32.eqz (call $path_open (i32.const {descriptor}) (i32.const 0) (i32.const 16) (i32.const 1)"
            " (i32.const 0) (i64.const 0) (i64.const 0) (i32.const 0) (i32.const 8))) (then (unreachable)))"
        )
    tries += f"(call $write {OUT} (i32.const 32) (i32.const 13))"
    async with stage(tmp_path) as s:
        url = await s.start(s.source(command(tries, {16: "/", 32: "Status: 204\\n\\n"})))
        assert (await post(url))[0] == 204


async def test_what_is_no_command_is_refused_when_it_is_prepared(tmp_path: Path) -> None:
    async with stage(tmp_path) as s:
        for text, said in (
            ("(module)", "_start"),
            ('(module (import "env" "open" (func)) (func (export "_start")))', "env"),
            ('(module (import "wasi_snapshot_preview1" "nothing" (func)) (func (export "_start")))', "nothing"),
        ):
            with pytest.raises(BuildFailed) as caught:
                await s.runtime.prepare(s.source(text))
            assert said in caught.value.detail
        with pytest.raises(BuildFailed, match="cannot be compiled"):
            await s.runtime.prepare(s.source_of(MODULE, {"m.wasm": b"\0asm\1\0\0\0\xff\xff"}))
        assert await s.runtime.adopt() == []


async def test_the_host_starts_beside_the_compiler_and_not_after_it(tmp_path: Path) -> None:
    async with stage(tmp_path) as s:
        assert s.runtime.host_pid is None, "nobody needed it yet"
        with pytest.raises(BuildFailed):
            await s.runtime.prepare(s.source_of(MODULE, {"m.wasm": b"no module"}))
        await until(lambda: s.runtime.host_pid is not None)


async def test_a_variant_s_artifact_is_another_module(tmp_path: Path) -> None:
    descriptor = msgspec.structs.replace(
        MODULE,
        artifacts=(Artifact("small", "WasmModule", "small.wasm"),),
        variants={"small": Variant(artifact="small")},
    )
    files = {"m.wasm": wat(HELLO), "small.wasm": wat(says("Content-Type: text/plain\\n\\nsmall"))}
    async with stage(tmp_path) as s:
        source = s.source_of(descriptor, files)
        assert await post(await s.start(source)) == (200, b"hello")
        small = msgspec.structs.replace(source, variant="small")
        assert await post(await s.start(small, "two")) == (200, b"small")
        assert await s.runtime.image_of(source.digest, "small") != await s.runtime.image_of(source.digest, None)


async def test_requests_run_side_by_side_and_stopping_interrupts_them(tmp_path: Path) -> None:
    async with stage(tmp_path) as s:
        url = await s.start(s.source(SPIN, timeout=60.0))
        requests = [asyncio.create_task(post(url)) for _ in range(6)]
        other = await s.start(s.source(HELLO), "two")
        assert await post(other) == (200, b"hello")
        began = time.monotonic()
        await s.runtime.stop("one")
        ended = await asyncio.gather(*requests, return_exceptions=True)
        assert time.monotonic() - began < 2
        assert all(isinstance(e, aiohttp.ClientError) or (isinstance(e, tuple) and e[0] == 502) for e in ended)


async def test_a_paused_instance_answers_once_it_is_resumed(tmp_path: Path) -> None:
    async with stage(tmp_path) as s:
        url = await s.start(s.source(HELLO))
        await s.runtime.pause("one")
        waiting = asyncio.create_task(post(url))
        done, _ = await asyncio.wait([waiting], timeout=0.2)
        assert not done
        await s.runtime.resume("one")
        assert await waiting == (200, b"hello")


async def test_what_ran_runs_again_with_the_next_node(tmp_path: Path) -> None:
    async with stage(tmp_path) as s:
        for instance in ("runs", "paused", "stopped", "removed"):
            await s.start(s.source(HELLO), instance)
        await s.runtime.pause("paused")
        await s.runtime.stop("stopped")
        await s.runtime.remove("removed")
    async with stage(tmp_path) as s:
        found = {seen.instance: seen for seen in await s.runtime.adopt()}
        assert {name: seen.condition for name, seen in found.items()} == {
            "runs": Condition.RUNNING,
            "paused": Condition.PAUSED,
            "stopped": Condition.EXITED,
        }
        host, port = found["runs"].upstream(8080) or ("", 0)
        assert await post(f"http://{host}:{port}/") == (200, b"hello")
        await s.runtime.resume("paused")
        assert await s.runtime.start(Workload(instance="stopped", digest="", image="", mem=16))


async def test_a_host_that_dies_costs_the_requests_that_it_ran_and_nothing_else(tmp_path: Path) -> None:
    async with stage(tmp_path) as s:
        url = await s.start(s.source(HELLO))
        spinning = asyncio.create_task(post(await s.start(s.source(SPIN, timeout=60.0), "two")))
        await s.start(s.source(HELLO), "asleep")
        await s.runtime.pause("asleep")
        died = s.runtime.host_pid
        assert died is not None
        os.kill(died, signal.SIGKILL)
        with pytest.raises(aiohttp.ClientError):
            await spinning
        assert await post(url) == (200, b"hello"), "the same address, and no connection refused meanwhile"
        assert s.runtime.host_pid not in (None, died)
        assert [seen.condition for seen in await s.runtime.adopt()] == [
            Condition.RUNNING,
            Condition.RUNNING,
            Condition.PAUSED,
        ]


async def test_a_host_that_dies_again_and_again_is_given_up(tmp_path: Path) -> None:
    async with stage(tmp_path) as s:
        source = s.source(HELLO)
        url = await s.start(source)
        for _ in range(MAX_DEATHS):
            assert await post(url) == (200, b"hello")
            assert s.runtime.host_pid is not None
            os.kill(s.runtime.host_pid, signal.SIGKILL)
            died = s.runtime.host_pid
            await until(lambda died=died: s.runtime.host_pid != died)

        async def seen() -> bool:
            found = await s.runtime.inspect("one")
            return found is not None and (found.condition, found.exit_code) == (Condition.EXITED, 139)

        await until(seen)
        with pytest.raises(EngineUnavailable, match="died 3 times"):
            await s.start(source, "two")


@pytest.mark.netns
async def test_the_host_has_neither_rights_nor_a_network(tmp_path: Path) -> None:
    async with stage(tmp_path) as s:
        await s.start(s.source(HELLO))
        host = Path(f"/proc/{s.runtime.host_pid}")
        status = dict(line.split(":\t", 1) for line in (host / "status").read_text().splitlines() if ":\t" in line)
        assert status["Uid"].split() == ["65534"] * 4
        assert int(status["CapEff"], 16) == 0
        assert status["NoNewPrivs"] == "1"
        assert (host / "ns/net").readlink() != Path("/proc/self/ns/net").readlink()


async def test_damaged_or_foreign_native_code_is_never_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with stage(tmp_path) as s:
        source = s.source(HELLO)
        await s.runtime.prepare(source)
        (native,) = (tmp_path / "wasm" / "modules").glob("*.cwasm")
        data = bytearray(native.read_bytes())
        data[len(data) // 2] ^= 0xFF
        native.write_bytes(data)
        assert await post(await s.start(source)) == (200, b"hello")
        assert native.read_bytes() != data, "it was compiled anew"
        assert (native.parent.stat().st_mode & 0o777) == 0o700
    monkeypatch.setattr("agent.wasm.modules.host_key", lambda: "wasmtime 99 elsewhere")
    async with stage(tmp_path) as s:
        (seen,) = await s.runtime.adopt()
        assert seen.condition is Condition.RUNNING, "an upgrade compiles what ran anew"
        assert await s.runtime.built([source.digest]) == {source.digest}


async def test_an_instance_whose_module_is_gone_is_not_claimed_to_run(tmp_path: Path) -> None:
    async with stage(tmp_path) as s:
        await s.start(s.source(HELLO))
    for file in (tmp_path / "wasm" / "modules").iterdir():
        file.unlink()
    async with stage(tmp_path) as s:
        assert await s.runtime.adopt() == []
        assert await s.runtime.inspect("one") is None


async def test_the_cache_keeps_to_its_quota_and_spares_what_is_in_use(tmp_path: Path) -> None:
    async with stage(tmp_path) as s:
        sources = [s.source(says(f"Content-Type: text/plain\\n\\n{word}")) for word in ("a", "b")]
        names = [await s.runtime.prepare(source) for source in sources]
        modules = WasmModules(tmp_path / "wasm" / "modules", extract_file, s.runtime._check)
        modules.trim({names[0]}, quota=0)
        assert [modules.find(name) is not None for name in names] == [True, False]
        assert len(list((tmp_path / "wasm" / "modules").glob("*.cwasm"))) == 1


async def test_nothing_is_left_over_after_many_requests(tmp_path: Path) -> None:
    async with stage(tmp_path) as s:
        source = s.source(ECHO)

        def open_files() -> list[int]:
            return [len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in ("self", s.runtime.host_pid)]

        await post(await s.start(source), b"the first request makes what the WebAssembly runtime keeps for ever")
        await s.runtime.remove("one")
        before = open_files()
        for _ in range(3):
            url = await s.start(source)
            async with aiohttp.ClientSession() as session:
                for _ in range(50):
                    async with session.post(url, data=b"x" * 1000) as response:
                        assert len(await response.read()) == 1000
            await s.runtime.remove("one")
        await until(lambda: open_files() <= before)
