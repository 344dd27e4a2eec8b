"""The node's own cache of compiled modules.

    NAME.wasm      the module, as its archive has it
    NAME.json      which compiled file belongs to it, for which wasmtime and machine, and its described limits
    HEX.cwasm      native code, named by the SHA-256 of its bytes

NAME comes from the archive's digest (and the artifact's name). Native code is trusted like a program: it is compiled
here, kept in a folder that only this user can enter, checked against its name before it is loaded, and never taken
from a peer. Every file appears whole or not at all.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import platform
import re
import signal
import sys
from collections.abc import Awaitable, Callable, Collection, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Protocol
from uuid import uuid4

import msgspec
import structlog
from msgspec import Struct

from agent.runtime import IMAGE_GONE, Source, artifact_of, last_lines
from agent.wasm import compiler as wasm_compiler
from protocol.identifiers import DIGEST_PREFIX
from protocol.problems import BuildFailed, DiskFull, StartFailed

log = structlog.get_logger(__name__)

MAX_MODULE = 64 << 20
COMPILE_MEMORY = 4 << 30
"""Address space of the compiler, most of it never touched."""

COMPILE_CPU_S = 60
COMPILE_WALL_S = 120.0
QUOTA = 1 << 30
"""Bytes of the cache; modules that nobody uses make room, the longest unused first."""

_NAME = re.compile(r"[0-9a-f]{32}(-[0-9a-f]{8})?")


Check = Callable[[bytes, str], Awaitable[None]]


class ExtractFile(Protocol):
    """Takes one file out of a vetted archive. Blocks; raises InvalidArchive, DiskFull."""

    def __call__(self, path: Path, member: str, dest: Path) -> None: ...


class Compiled(Struct, frozen=True, kw_only=True):
    """`key`: what the native code fits to. `fuel` in instructions, `timeout_s` in s, both of one request."""

    key: str
    sha256: str
    fuel: int | None
    timeout_s: float | None


def module_name(digest: str, artifact: str | None) -> str:
    short = digest.removeprefix(DIGEST_PREFIX)[:32]
    special = "" if artifact is None else "-" + hashlib.sha256(artifact.encode()).hexdigest()[:8]
    return short + special


def host_key() -> str:
    """Native code of another wasmtime or another processor family is none here."""
    return f"{version('wasmtime')} {platform.system()} {platform.machine()}"


class WasmModules:
    """Blocking work runs in threads; the compiler is a process of its own."""

    def __init__(self, folder: Path, extract: ExtractFile, check: Check) -> None:
        """`check` tells whether native code (and its SHA-256) fits the host that will run it: raises StartFailed.

        `folder` is made, for this user alone, and cleared of what an interrupted write left. Raises DiskFull.
        """
        self._folder = folder
        self._extract = extract
        self._check = check
        self._key = host_key()
        with _room():
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder.chmod(0o700)
            for left in (*folder.glob("work-*"), *folder.glob(".*.partial")):
                left.unlink()
        self._known = dict(_records(folder))

    def find(self, name: str) -> Compiled | None:
        """What is compiled for this machine under `name`."""
        kept = self._known.get(name)
        return kept if kept is not None and kept.key == self._key else None

    async def make(self, source: Source) -> str:
        """Take the module out of its archive and compile it. Raises BuildFailed, InvalidArchive, DiskFull."""
        wanted = artifact_of(source.descriptor, source.variant)
        name, member = module_name(source.digest, wanted), _member(source, wanted)
        with self._work() as raw:
            await asyncio.to_thread(self._extract, source.archive, member, raw)
            if raw.stat().st_size > MAX_MODULE:
                raise _too_large(member)
            limits = (source.descriptor.fuel, source.descriptor.timeout)
            await self._compile(name, raw, *limits)
            raw.replace(self._module(name))
        return name

    async def load(self, name: str) -> tuple[bytes, Compiled]:
        """Native code and its described limits. A module of an older wasmtime is compiled anew. Raises StartFailed."""
        if not _NAME.fullmatch(name):
            raise _absent(name)
        compiled = self.find(name)
        if compiled is not None:
            native = await asyncio.to_thread(self._load, name, compiled)
            if native is not None:
                return native, compiled
        compiled = await self._again(name)
        native = await asyncio.to_thread(self._load, name, compiled)
        if native is None:
            raise _absent(name)
        return native, compiled

    def trim(self, in_use: Collection[str], quota: int = QUOTA) -> None:
        """Drop native code that no record names, and the longest unused modules until the cache fits its quota."""
        named = {kept.sha256 for kept in self._known.values()}
        for native in self._folder.glob("*.cwasm"):
            if native.stem not in named:
                native.unlink()
        size = sum(path.stat().st_size for path in self._folder.iterdir())
        for record in sorted(self._folder.glob("*.json"), key=lambda path: path.stat().st_mtime):
            if size > quota and record.stem not in in_use:
                size -= self._drop(record.stem)

    # --- inside -----------------------------------------------------------------------------------------------------

    async def _again(self, name: str) -> Compiled:
        kept = self._known.get(name)
        if kept is None or not self._module(name).exists():
            if kept is not None:
                self._drop(name)
            raise _absent(name)
        log.info("wasm-compiled-anew", module=name)
        try:
            return await self._compile(name, self._module(name), kept.fuel, kept.timeout_s)
        except BuildFailed as problem:
            raise StartFailed(problem.detail, fix=problem.fix, reason="engine-refused", log=[]) from problem

    async def _compile(self, name: str, raw: Path, fuel: int | None, timeout_s: float | None) -> Compiled:
        with self._work() as native:
            await _run_compiler(raw, native)
            compiled = await asyncio.to_thread(native.read_bytes)
            sha256 = hashlib.sha256(compiled).hexdigest()
            try:
                await self._check(compiled, sha256)
            except StartFailed as problem:
                raise BuildFailed(problem.detail, fix=problem.fix, log=[]) from problem
            with _room():
                native.replace(self._native(sha256))
            kept = Compiled(key=self._key, sha256=sha256, fuel=fuel, timeout_s=timeout_s)
            write_whole(self._record(name), msgspec.json.encode(kept))
            self._known[name] = kept
        return kept

    def _drop(self, name: str) -> int:
        """Forget a module; returns the bytes that this freed."""
        kept = self._known.pop(name)
        files = [self._record(name), self._module(name)]
        if all(other.sha256 != kept.sha256 for other in self._known.values()):
            files.append(self._native(kept.sha256))
        there = [file for file in files if file.exists()]
        size = sum(file.stat().st_size for file in there)
        for file in there:
            file.unlink()
        return size

    def _load(self, name: str, compiled: Compiled) -> bytes | None:
        """None if the file is gone or is not what was written: then it is compiled anew."""
        native = self._native(compiled.sha256)
        try:
            self._record(name).touch()
            data = native.read_bytes()
        except OSError:
            return None
        if hashlib.sha256(data).hexdigest() != compiled.sha256:
            log.warning("wasm-cache-damaged", file=str(native))
            return None
        return data

    @contextmanager
    def _work(self) -> Iterator[Path]:
        """A path for a file that is gone afterwards unless it was renamed."""
        path = self._folder / f"work-{uuid4().hex}"
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)

    def _record(self, name: str) -> Path:
        return self._folder / f"{name}.json"

    def _module(self, name: str) -> Path:
        return self._folder / f"{name}.wasm"

    def _native(self, sha256: str) -> Path:
        return self._folder / f"{sha256}.cwasm"


def _records(folder: Path) -> Iterator[tuple[str, Compiled]]:
    for path in folder.glob("*.json"):
        try:
            yield path.stem, msgspec.json.decode(path.read_bytes(), type=Compiled)
        except (OSError, msgspec.MsgspecError) as error:
            log.warning("wasm-record-dropped", file=str(path), error=str(error))
            path.unlink()


def write_whole(path: Path, data: bytes) -> None:
    """Write a small file so that a crash leaves the old one or the new one. Raises DiskFull."""
    partial = path.with_name(f".{path.name}.partial")
    with _room():
        partial.write_bytes(data)
        partial.replace(path)


async def _run_compiler(source: Path, target: Path) -> None:
    arguments = [str(source), str(target), str(COMPILE_MEMORY), str(COMPILE_CPU_S)]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-I", wasm_compiler.__file__, *arguments),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        env={},
        start_new_session=True,  # Ctrl-C at a terminal is for the node, which gives up the work itself
    )
    try:
        async with asyncio.timeout(COMPILE_WALL_S):
            _, said = await process.communicate()
    except TimeoutError:
        raise _compile_failed(f"it took longer than {COMPILE_WALL_S:g} s", ()) from None
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    if process.returncode == wasm_compiler.NO_ROOM:
        raise _disk_full()
    if process.returncode:
        lines = last_lines(said.decode("utf-8", "replace"))
        why = lines[-1] if lines and process.returncode > 0 else _signal(process.returncode)
        raise _compile_failed(why, lines)


def _signal(status: int) -> str:
    return f"the compiler ended with {signal.Signals(-status).name}" if status < 0 else f"status {status}"


def _member(source: Source, wanted: str | None) -> str:
    if wanted is None:
        if source.descriptor.module is None:
            raise BuildFailed("the description names no module", fix="Correct the description.", log=[])
        return source.descriptor.module
    found = next((a for a in source.descriptor.artifacts if a.name == wanted), None)
    if found is None or found.kind != "WasmModule":
        raise BuildFailed(f"the variant's artifact {wanted!r} is no module", fix="Correct the description.", log=[])
    return found.file


@contextmanager
def _room() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _disk_full() from error
        raise


def _disk_full() -> DiskFull:
    return DiskFull("no room is left for compiled modules", fix="Make room on the disk of the data directory.")


def _too_large(member: str) -> BuildFailed:
    return BuildFailed(
        f"{member} has more than {MAX_MODULE >> 20} MiB", fix="Make the module smaller (-Oz, strip).", log=[]
    )


def _compile_failed(why: str, lines: Collection[str]) -> BuildFailed:
    return BuildFailed(
        f"the module cannot be compiled: {why}",
        fix="See that it is WebAssembly 2.0 without threads: wasm-tools validate.",
        log=list(lines),
    )


def _absent(name: str) -> StartFailed:
    return StartFailed(
        f"there is no module {name[:80]}",
        fix="It was removed from the cache: start with force_rebuild.",
        reason=IMAGE_GONE,
        log=[],
    )
