"""What the floors above need of the store, as two narrow interfaces.

`NetworkDirectory` (dht/records/directory.py) and `Exchange` (dht/swarm/exchange.py) are the real ones;
`dht.records.memory_directory` and `dht.swarm.memory_content` ship fakes for tests of other parts. One conformance suite
runs against both.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Protocol

from protocol.instances import OnProgress
from protocol.records import ProviderRecord, RegionRecord, Signed


class Directory(Protocol):
    """Signed records in the mesh.

    A lookup returns verified, unexpired records with tombstones applied, newest first. It raises Unavailable when
    too few peers answered to say "there is none", or when a large set did not arrive whole in time (the next call goes
    on from there); it never returns an empty or a partial list merely because peers were slow.
    """

    @property
    def addresses(self) -> Sequence[str]:
        """Where this node's records say that it is reached: host:port of its node-to-node listener."""

    async def publish(self, signed: Signed) -> None:
        """Keep and spread a record at every key it names, and republish it until it expires.

        A tombstone (`withdrawn`) replaces what it withdraws. Raises InvalidRecord if it is expired or older than
        what the mesh knows, Unavailable if no peer could be told (it is kept and told later all the same).
        """

    async def services(self, name: str) -> list[Signed]:
        """ServiceRecords at a record name: `id:od01`, `name:wordcount`, `service:sha256:...`, `category:/text`.

        Not to be changed by the caller. The same object as the last time means that nothing has changed.
        """

    async def providers(self, digest: str) -> list[ProviderRecord]:
        """Who serves this content, this node excluded."""

    async def regions(self, name: str) -> list[RegionRecord]:
        """Controllers at `region:<path>` or `children:<parent path>`, newest first."""

    async def announce_content(self, digest: str) -> None:
        """Say, until `retract_content`, that this node serves the content. Never raises for slow peers."""

    async def retract_content(self, digest: str) -> None: ...

    def offer(self, digest: str) -> Signed:
        """A provider record of this node for the content, to hand to a peer directly. Nothing is announced by it."""

    async def announce_region(self, *, region: str, agents: int, memory_total: int, memory_free: int) -> None:
        """Say that this node is a controller of `region`, with what its agents offer (MB). Call again to refresh."""


class Content(Protocol):
    """Blobs by digest: kept on this node in verified chunks, fetched from any provider in the mesh."""

    def has(self, digest: str) -> bool:
        """True if the whole blob is here."""

    def held(self) -> Sequence[str]:
        """Digests of all whole blobs here."""

    async def add(self, path: Path, *, pin: str | None = None, on_progress: OnProgress | None = None) -> str:
        """Cut a file into chunks, keep and announce them; returns its digest. `pin` names why it must stay.

        Raises DiskFull, and then keeps nothing; BadRequest if the file cannot be read.
        """

    async def fetch(
        self, digest: str, *, max_bytes: int, deadline_s: float, on_progress: OnProgress | None = None
    ) -> None:
        """Make the whole blob present, from several providers, resuming what is here already; then announce it.

        Concurrent calls for one digest share one transfer. Raises ContentNotFound (nobody offers it), Unavailable,
        CorruptContent, TooLarge, DiskFull, DeadlineExceeded.
        """

    def materialized(self, digest: str) -> AbstractAsyncContextManager[Path]:
        """The blob as one read-only file, byte for byte, for the time of the block: it is what this node keeps, so
        nobody may change it. Raises ContentNotFound, and DiskFull if a copy is needed and finds no room."""

    async def pin(self, digest: str, why: str) -> None:
        """Keep the blob from eviction until unpinned for the same reason. Reasons are counted as a set."""

    async def unpin(self, digest: str, why: str) -> None: ...

    async def pinned(self) -> Collection[str]:
        """Digests of all that is pinned, for whatever reason."""

    async def remove(self, digest: str) -> None:
        """Drop a blob, and stop announcing it. Raises Conflict if it is pinned; nothing happens if it is not here."""
