"""The digest of the whole, from chunks in any order."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from dht.blobs.proof import AT_ONCE, Proof
from dht.blobs.store import BlobStore, opened_store
from protocol.identifiers import digest_of
from protocol.manifest import Chunk, Manifest
from tests.content_sites import damage, files_of, noise

PARTS = [noise(1000 + seed, seed) for seed in range(3 * AT_ONCE)]


def manifest_for(parts: Sequence[bytes], digest: str = "") -> Manifest:
    data = b"".join(parts)
    return Manifest(digest or digest_of(data), len(data), tuple(Chunk(digest_of(p), len(p)) for p in parts))


def bring(store: BlobStore, proof: Proof, parts: Sequence[bytes]) -> None:
    for part in parts:
        store.put(digest_of(part), part)
        proof.arrived(digest_of(part), memoryview(part))


@pytest.mark.parametrize("seed", range(4))
def test_the_order_of_arrival_does_not_matter(tmp_path: Path, seed: int) -> None:
    manifest = manifest_for(PARTS)
    shuffled = list(PARTS)
    random.Random(seed).shuffle(shuffled)
    with opened_store(tmp_path, quota_bytes=10**9) as store:
        proof = store.proof(manifest, store.begin(manifest).missing)
        bring(store, proof, shuffled)
        assert proof.holds()


def test_in_order_nothing_is_read_from_the_disk(tmp_path: Path) -> None:
    manifest = manifest_for(PARTS)
    with opened_store(tmp_path, quota_bytes=10**9) as store:
        proof = store.proof(manifest, store.begin(manifest).missing)
        bring(store, proof, PARTS)
        for file in files_of(tmp_path):
            file.write_bytes(b"rot")
        assert proof.holds()


def test_what_was_here_before_is_read(tmp_path: Path) -> None:
    manifest = manifest_for(PARTS)
    with opened_store(tmp_path, quota_bytes=10**9) as store:
        store.begin(manifest)
        for part in PARTS[:5]:
            store.put(digest_of(part), part)
        missing = store.begin(manifest).missing
        proof = store.proof(manifest, missing)
        bring(store, proof, PARTS[5:])
        assert store.finish(manifest.digest, proof) == ()


def test_other_bytes_and_missing_chunks_are_no_proof(tmp_path: Path) -> None:
    lie = manifest_for(PARTS, digest_of(b"something else"))
    with opened_store(tmp_path, quota_bytes=10**9) as store:
        proof = store.proof(lie, store.begin(lie).missing)
        bring(store, proof, PARTS)
        assert not proof.holds()
        true = manifest_for(PARTS)
        store.begin(true)
        store.remove(lie.digest)
        partial = store.proof(true, ())
        damage(tmp_path, PARTS[7])
        assert not partial.holds()
