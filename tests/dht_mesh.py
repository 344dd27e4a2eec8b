"""Real directories over UDP on loopback, and records to put into them."""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dht.overlay import OpenTransport, Tuning, WholeSets
from dht.overlay.sealing import Keyring
from dht.records.directory import DirectoryConfig, NetworkDirectory, running_directory
from protocol.admission import Credentials, admit
from protocol.records import ServiceRecord, Signed, last_moment, raw_public_key, sign
from tests.waiting import until

KEYRING = Keyring(mesh="test", keys={1: b"k" * 32}, current=1)
PUBLISHER = Ed25519PrivateKey.from_private_bytes(b"p" * 32)


ROOT = Ed25519PrivateKey.from_private_bytes(b"r" * 32)


def identity(number: int) -> Ed25519PrivateKey:
    """The same key for the same number, so that a failing run can be repeated."""
    return Ed25519PrivateKey.from_private_bytes(hashlib.sha256(b"node%d" % number).digest())


def credentials(key: Ed25519PrivateKey, *, root: Ed25519PrivateKey = ROOT, until: int = 2**40) -> Credentials:
    """Of a member of the mesh with that root, whatever root the member itself believes in."""
    return Credentials(key, admit(root, raw_public_key(key), until), raw_public_key(ROOT))


def service(
    service_id: str = "wc01",
    *,
    seq: int | None = None,
    content: str = "archive",
    category: str = "/text/count",
    expiry: float | None = None,
    withdrawn: bool = False,
    key: Ed25519PrivateKey = PUBLISHER,
    description: str = "counts words",
) -> Signed:
    """Valid for an hour; a tombstone as long as one has to be."""
    now = time.time()
    seq = int(now * 1000) if seq is None else seq
    if expiry is None:
        expiry = last_moment("service", seq) if withdrawn else now + 3600
    record = ServiceRecord(
        digest="sha256:" + hashlib.sha256(content.encode()).hexdigest(),
        id=service_id,
        name=f"name-{service_id}",
        description=description,
        category=category,
        inputs=("text",),
        outputs=("number",),
        size=2048,
        mem=50,
        publisher=raw_public_key(key),
        version="1.0",
        seq=seq,
        expiry=int(expiry),
        withdrawn=withdrawn,
    )
    return sign(record, key)


@asynccontextmanager
async def node(
    number: int,
    *,
    bootstrap: Sequence[str] = (),
    database: Path | None = None,
    tuning: Tuning | None = None,
    keyring: Keyring = KEYRING,
    port: int = 0,
    clock: Callable[[], float] = time.time,
    transport: OpenTransport | None = None,
    chance: random.Random | None = None,
    door: int = 0,
    whole_sets: WholeSets | None = None,
) -> AsyncIterator[NetworkDirectory]:
    config = DirectoryConfig(
        host="127.0.0.1",
        port=port,
        bootstrap=tuple(bootstrap),
        database=database,
        tuning=tuning or Tuning(),
        door=door,
    )
    async with running_directory(
        config,
        credentials=credentials(identity(number)),
        keyring=keyring,
        addresses=(f"127.0.0.1:{9000 + number}",),
        clock=clock,
        transport=transport,
        chance=chance,
        whole_sets=whole_sets,
    ) as directory:
        yield directory


@asynccontextmanager
async def mesh(count: int, *, tuning: Tuning | None = None) -> AsyncIterator[list[NetworkDirectory]]:
    """`count` nodes; all but the first know only the first."""
    async with AsyncExitStack() as stack:
        nodes = [await stack.enter_async_context(node(0, tuning=tuning))]
        first = nodes[0].contacts()[0]
        for number in range(1, count):
            nodes.append(await stack.enter_async_context(node(number, bootstrap=[first], tuning=tuning)))
        await until(lambda: all(n.stats()["contacts"] >= min(count - 1, 2) for n in nodes))
        yield nodes
