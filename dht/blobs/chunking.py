"""Content-defined chunks: where a blob is cut depends on its bytes, so an edit moves only the chunks around it.

FastCDC 2020 (Xia et al.), normalized chunking level 1, default gear table. The sizes are part of the protocol in one
sense only: sites that cut differently still exchange blobs, but share fewer chunks between versions.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import pyfastcdc

from protocol.identifiers import DIGEST_PREFIX
from protocol.manifest import MAX_MANIFEST, Chunk, Manifest
from protocol.problems import ConfigError, Conflict, TooLarge

MIN_SIZE = 64 << 10
AVERAGE_SIZE = 256 << 10
MAX_SIZE = 1 << 20

_ENCODED_CHUNK = 79
"""Bytes of one chunk in an encoded manifest: array header, string of 71 characters, length."""


def compiled_cutter(implementation: Any = None) -> Any:
    """The FastCDC class. Raises ConfigError if only the pure Python one is there: it is 200 times slower."""
    kind = implementation or pyfastcdc.FastCDC
    if not kind.__module__.startswith("pyfastcdc.cy"):
        raise ConfigError(
            "pyfastcdc is installed without its compiled extension",
            fix="Install a wheel, or build with PYFASTCDC_REQUIRE_CYTHON=1 (needs gcc and the Python headers).",
        )
    return kind


def manifest_of(
    path: Path,
    on_bytes: Callable[[int], None] = lambda done: None,
    on_chunk: Callable[[int, int, Chunk, memoryview], None] = lambda position, offset, chunk, data: None,
) -> Manifest:
    """Reads the file once, with flat memory; the whole is hashed in a thread beside.

    `on_bytes` hears the bytes read so far; `on_chunk` the position, offset and bytes of each chunk. Raises TooLarge if
    the manifest would be longer than peers accept, Conflict if the file changes meanwhile, OSError if it is unreadable.
    """
    whole = hashlib.sha256()
    chunks: list[Chunk] = []
    size = 0
    with path.open("rb", buffering=0) as file, ThreadPoolExecutor(1, thread_name_prefix="hash-whole") as beside:
        before = os.fstat(file.fileno())
        for data in _cut(file):
            hashing = beside.submit(whole.update, data)
            chunk = Chunk(DIGEST_PREFIX + hashlib.sha256(data).hexdigest(), len(data))
            on_chunk(len(chunks), size, chunk, data)
            hashing.result()
            size += len(data)
            chunks.append(chunk)
            if len(chunks) * _ENCODED_CHUNK > MAX_MANIFEST - 256:
                raise TooLarge(
                    f"{path.name} has more chunks than a manifest can list", fix="Publish a smaller archive."
                )
            on_bytes(size)
        after = os.fstat(file.fileno())
    if (size, after.st_size, after.st_mtime_ns) != (before.st_size, before.st_size, before.st_mtime_ns):
        raise Conflict(f"{path} changed while it was read", fix="Add it again.")
    return Manifest(DIGEST_PREFIX + whole.hexdigest(), size, tuple(chunks))


def _cut(file: BinaryIO) -> Iterator[memoryview]:
    """Each view is valid until the next one is asked for."""
    cutter = compiled_cutter()(AVERAGE_SIZE, min_size=MIN_SIZE, max_size=MAX_SIZE, normalized_chunking=1)
    for chunk in cutter.cut_stream(file):
        yield chunk.data
