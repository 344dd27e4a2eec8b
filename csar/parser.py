"""`Parser`: archives to descriptors, with tosca-parser kept in one child process (`warm_up` starts it early)."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from csar.archive import Archive, open_archive
from csar.descriptor import build_descriptor
from csar.extract import extract_directory, extract_file, file_pieces
from csar.findings import as_problem
from csar.frames import Complaint
from csar.limits import DEFAULT_LIMITS, Limits
from csar.meta import META_PATH, entry_from_meta, entry_without_meta
from csar.refusals import Finding
from csar.strict_yaml import decode, parse
from csar.template import Vetted, vet
from csar.worker_process import WorkerProcess
from protocol.service import ServiceDescriptor

_THREADS = 2
"""A crowd of archives must not fill the event loop's thread pool."""


class Parser:
    """`async with Parser() as parser: await parser.describe(path)`. Leaving it ends the child process.

    Safe to call from many tasks and threads at once: archives are read side by side, templates judged one by one.
    """

    def __init__(self, limits: Limits = DEFAULT_LIMITS) -> None:
        self._limits = limits
        self._worker = WorkerProcess(limits)
        self._slots = asyncio.Semaphore(_THREADS)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.close)

    def close(self) -> None:
        """End the child process. Idempotent; for those who do not use `async with`."""
        self._worker.close()

    async def warm_up(self) -> None:
        """Start the child process, so that the first archive need not wait for it. Raises Unavailable."""
        await asyncio.to_thread(self._worker.warm_up)

    async def describe(self, path: Path, *, verify_contents: bool = True) -> ServiceDescriptor:
        """What the archive at `path` says of its service. Raises InvalidArchive or NotFound.

        With `verify_contents` every file is read once against its checksum; leave it out for bytes whose digest
        is already known to be right.
        """
        async with self._slots:
            return await asyncio.to_thread(self.describe_sync, path, verify_contents=verify_contents)

    def describe_sync(self, path: Path, *, verify_contents: bool = True) -> ServiceDescriptor:
        """As `describe`, blocking."""
        with open_archive(path, self._limits) as archive:
            vetted = _read_template(archive, self._limits)
            self._judge(vetted)
            descriptor = build_descriptor(vetted, archive)
            if verify_contents:
                archive.verify()
        return descriptor

    def extract_directory(self, path: Path, folder: str, dest: Path) -> None:
        """`csar.extract_directory` with this parser's limits. Blocks."""
        extract_directory(path, folder, dest, self._limits)

    def extract_file(self, path: Path, member: str, dest: Path) -> None:
        """`csar.extract_file` with this parser's limits. Blocks."""
        extract_file(path, member, dest, self._limits)

    def file_pieces(self, path: Path, member: str) -> Iterator[bytes]:
        """`csar.file_pieces` with this parser's limits. Blocks."""
        return file_pieces(path, member, self._limits)

    def _judge(self, vetted: Vetted) -> None:
        found = self._worker.complaints(vetted.topology)
        if found:
            raise as_problem(vetted.document, [_finding(complaint) for complaint in found])


def _finding(complaint: Complaint) -> Finding:
    if complaint.path:
        return Finding("property-value", complaint.path, complaint.message, "Correct the value.")
    return Finding("tosca", ("topology_template",), complaint.message, "See docs/csar.md for a complete example.")


def _read_template(archive: Archive, limits: Limits) -> Vetted:
    if META_PATH in archive.files:
        meta = archive.read(META_PATH, limits.meta_bytes, code="meta-too-large")
        entry = entry_from_meta(decode(meta, META_PATH), archive.files)
    else:
        entry = entry_without_meta(archive.files)
    return vet(parse(archive.read(entry, limits.yaml_bytes, code="yaml-too-large"), entry, limits))


async def describe(path: Path, limits: Limits = DEFAULT_LIMITS) -> ServiceDescriptor:
    """One archive with a parser of its own (half a second). A node keeps a `Parser` instead."""
    async with Parser(limits) as parser:
        return await parser.describe(path)


def describe_sync(path: Path, limits: Limits = DEFAULT_LIMITS) -> ServiceDescriptor:
    """As `describe`, for programs without an event loop."""
    parser = Parser(limits)
    try:
        return parser.describe_sync(path)
    finally:
        parser.close()
