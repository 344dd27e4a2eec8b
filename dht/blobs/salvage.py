"""An index that was lost: packs that are whole blobs say by themselves which ones.

Manifests, pins and the order of use are gone with it; a pack that has chunks elsewhere, or not all of them, is nothing
without its manifest. What is found may be the last copy of what was published here.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import structlog

from dht.blobs.chunking import manifest_of
from dht.blobs.index import BlobIndex
from dht.blobs.packs import KEPT, Packs
from protocol.problems import Problem

log = structlog.get_logger(__name__)


def salvage(packs: Packs, index: BlobIndex) -> Sequence[str]:
    """The blobs that a new index was taught, in a transaction of the caller's. Reads every pack; raises OSError."""
    found: list[str] = []
    for number in packs.numbers():
        path = Path(packs.path(number))
        kept = path.with_suffix(".kept")
        slots = kept.read_bytes() if kept.exists() else b""
        if slots.count(KEPT) != len(slots):
            continue
        try:
            manifest = manifest_of(path)
        except Problem as problem:
            log.warning("pack-not-salvaged", pack=number, why=problem.detail)
            continue
        if manifest.digest not in found:
            kept.write_bytes(KEPT * len(manifest.chunks))  # another cutter may have made it
            index.insert(manifest, number, number)
            index.set_whole(manifest.digest, whole=True)
            found.append(manifest.digest)
    if found:
        log.error(
            "index-lost",
            salvaged=found,
            fix="Publish again what was published on this node, or it may be evicted; records are not lost.",
        )
    return found
