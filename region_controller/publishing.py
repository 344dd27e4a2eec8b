"""Publishing through a controller: an uploaded CSAR is checked, kept and announced; withdrawing; downloading.

A developer's own key signs the record (header `Cornerstore-Record`: base64url of the signed envelope); without one an
operator's token is needed and the site's key signs.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dht import rules
from dht.contracts import Content, Directory
from protocol import base64url
from protocol.instances import OnProgress, ServiceView, VariantView
from protocol.problems import (
    Forbidden,
    InvalidRecord,
    KeyNeeded,
    NoMatchingService,
    Problem,
    Unavailable,
)
from protocol.records import (
    MAX_ENVELOPE,
    RECORD_HEADER,
    ServiceRecord,
    Signed,
    last_moment,
    raw_public_key,
    service_record,
    sign,
    verify,
)
from protocol.service import ServiceDescriptor
from region_controller.catalogue import Catalogue
from region_controller.region import ControllerConfig
from region_controller.spool import Slots, Spool

log = structlog.get_logger(__name__)

SITE_RECORD_S = 180 * 86_400
"""How long a record signed with the site's key lives."""
FETCH_S = 300.0
SEEDED = "seeded"
"""Why an archive is pinned that another published and an operator asked to keep."""

Describe = Callable[[Path], Awaitable[ServiceDescriptor]]


class Publishing:
    def __init__(
        self,
        config: ControllerConfig,
        *,
        directory: Directory,
        content: Content,
        catalogue: Catalogue,
        describe: Describe,
        key: Ed25519PrivateKey,
        clock: Callable[[], float],
    ) -> None:
        self._config = config
        self._directory = directory
        self._content = content
        self._catalogue = catalogue
        self._describe = describe
        self._key = key
        self._clock = clock
        self._spool = Spool(
            config.spool,
            archive_bytes=config.max_archive_bytes,
            quota_bytes=config.spool_bytes,
            uploads=config.max_uploads,
        )
        self._downloads = Slots(config.max_downloads, "downloads")

    async def show(self, digest: str) -> ServiceView:
        """The newest record of a service. Raises NoMatchingService."""
        records = await self._catalogue.by_digest(digest)
        if not records:
            raise _not_published(digest)
        return service_view(records[0])

    async def publish(self, body: AsyncIterator[bytes], header: str | None, *, operator: bool) -> ServiceView:
        """Keep the archive, announce its record, and return it.

        Without a record of its own, what somebody published already is only kept: no second record is made of it.
        Raises KeyNeeded, TooManyRequests, TooLarge, DiskFull, InvalidArchive, InvalidRecord, Forbidden.
        """
        signed = _envelope(header) if header is not None else None
        if signed is None and not operator:
            raise KeyNeeded(
                "publishing needs a publisher's key or the operator's token",
                fix="Use `cornerstore publish`, which signs with your key, or send the operator's token.",
            )
        async with self._spool.keeping(body) as upload:
            path, digest, size = upload.path, upload.digest, upload.size
            descriptor = await self._describe(path)
            record = self._checked(signed, descriptor, digest, size)
            if signed is None:
                if published := await self._published_by_others(digest):
                    await self._content.add(path, pin=SEEDED)
                    log.info("service-seeded", digest=digest, id=record.id)
                    return service_view(published)
                signed = sign(record, self._key)
            await self._keep(path, signed, record)
        self._catalogue.published(record)
        log.info("service-published", digest=digest, id=record.id, publisher=record.publisher.hex()[:16])
        return service_view(record)

    def _checked(self, signed: Signed | None, descriptor: ServiceDescriptor, digest: str, size: int) -> ServiceRecord:
        """The record to announce. Raises InvalidRecord where the developer's differs from the archive."""
        now = self._clock()
        if signed is None:
            return service_record(
                descriptor,
                digest=digest,
                size=size,
                publisher=raw_public_key(self._key),
                seq=int(now * 1000),
                expiry=int(now + SITE_RECORD_S),
            )
        record = _service(signed)
        if record.withdrawn:
            raise InvalidRecord(
                "the record is a tombstone", fix="Withdraw with `cornerstore withdraw` (DELETE /v1/services/{digest})."
            )
        rules.accept(record, now)
        true = service_record(
            descriptor, digest=digest, size=size, publisher=record.publisher, seq=record.seq, expiry=record.expiry
        )
        wrong = [f for f in ServiceRecord.__struct_fields__ if getattr(record, f) != getattr(true, f)]
        if wrong:
            said = ", ".join(f"{f} is {getattr(true, f)!r}, not {getattr(record, f)!r}" for f in wrong)
            raise InvalidRecord(f"the record does not describe this archive: {said}", fix="Sign a record of this file.")
        return record

    async def _keep(self, path: Path, signed: Signed, record: ServiceRecord) -> None:
        was_here = self._content.has(record.digest)
        await self._content.add(path, pin=_pin(record))
        try:
            await self._announce(signed)
        except InvalidRecord:
            if not was_here:
                await self._drop(record)
            raise

    async def _announce(self, signed: Signed) -> None:
        """A record that no peer could be told of now is told later by the directory."""
        try:
            await self._directory.publish(signed)
        except Unavailable as problem:
            log.warning("published-alone", problem=problem.detail)

    async def withdraw(self, digest: str, header: str | None, *, operator: bool) -> ServiceView:
        """Raises KeyNeeded, NoMatchingService, Forbidden, InvalidRecord."""
        if header is None and not operator:
            raise KeyNeeded(
                "withdrawing needs the publisher's key, or the operator's token for what this site published",
                fix="Use `cornerstore withdraw` with the key that published it.",
            )
        if header is None:
            own = await self._published_by(raw_public_key(self._key), digest)
            seq = max(int(self._clock() * 1000), own.seq + 1)
            expiry = last_moment("service", seq)
            signed = sign(msgspec.structs.replace(own, withdrawn=True, seq=seq, expiry=expiry), self._key)
        else:
            signed = _envelope(header)
        record = _service(signed)
        if record.digest != digest or not record.withdrawn:
            raise InvalidRecord("the record is not a tombstone of this service", fix="Sign it with `withdrawn`.")
        rules.accept(record, self._clock())
        await self._published_by(record.publisher, digest)
        await self._announce(signed)
        self._catalogue.published(record)
        await self._drop(record)
        log.info("service-withdrawn", digest=digest, id=record.id)
        return service_view(record)

    async def _published_by_others(self, digest: str) -> ServiceRecord | None:
        """The newest record, if none is signed with our own key, which would rather be renewed."""
        try:
            records = await self._catalogue.by_digest(digest)
        except Unavailable:
            return None
        ours = raw_public_key(self._key)
        return None if not records or any(r.publisher == ours for r in records) else records[0]

    async def _published_by(self, publisher: bytes, digest: str) -> ServiceRecord:
        """Raises NoMatchingService if nobody published it, Forbidden if only others did."""
        records = await self._catalogue.by_digest(digest)
        if not records:
            raise _not_published(digest)
        own = next((r for r in records if r.publisher == publisher), None)
        if own is None:
            raise Forbidden("another key published this service", fix="Its publisher can withdraw it.")
        return own

    async def _drop(self, record: ServiceRecord) -> None:
        """Let the archive go, unless something else still needs it here."""
        await self._content.unpin(record.digest, _pin(record))
        try:
            await self._content.remove(record.digest)
        except Problem as problem:
            log.info("archive-kept", digest=record.digest, why=problem.detail)

    async def bring(self, digest: str, on_progress: OnProgress | None = None) -> None:
        """Fetch the CSAR of a published service through the mesh, if it is not here.

        Raises NoMatchingService, TooManyRequests, and what `Content.fetch` raises."""
        with self._downloads.one():
            await self._brought(digest, on_progress)

    @asynccontextmanager
    async def archive(self, digest: str) -> AsyncIterator[Path]:
        """The CSAR of a published service as a file. Raises what `bring` does."""
        with self._downloads.one():
            await self._brought(digest, None)
            async with self._content.materialized(digest) as path:
                yield path

    async def _brought(self, digest: str, on_progress: OnProgress | None) -> None:
        if self._content.has(digest):
            return
        if not await self._catalogue.by_digest(digest):
            raise _not_published(digest)
        await self._content.fetch(
            digest, max_bytes=self._config.max_archive_bytes, deadline_s=FETCH_S, on_progress=on_progress
        )


def _not_published(digest: str) -> NoMatchingService:
    return NoMatchingService(
        f"nothing published has the digest {digest}", fix="`cornerstore search` (GET /v1/services) lists what is."
    )


def service_view(record: ServiceRecord) -> ServiceView:
    return ServiceView(
        digest=record.digest,
        id=record.id,
        name=record.name,
        description=record.description,
        category=record.category,
        inputs=record.inputs,
        outputs=record.outputs,
        size=record.size,
        mem=record.mem,
        publisher=record.publisher.hex(),
        version=record.version,
        published_at=record.seq / 1000,
        expires_at=float(record.expiry),
        variants=tuple(
            VariantView(name=v.name, accuracy=v.accuracy, latency_ms=v.latency_ms, mem=v.mem or record.mem)
            for v in (record.terms.variants if record.terms is not None else ())
        ),
    )


def _envelope(header: str) -> Signed:
    """Raises InvalidRecord."""
    if len(header) > 2 * MAX_ENVELOPE:
        raise InvalidRecord(f"the header {RECORD_HEADER} holds at most {MAX_ENVELOPE} bytes in base64url")
    try:
        envelope = base64url.decode(header)
    except ValueError:
        raise InvalidRecord(f"the header {RECORD_HEADER} is not base64url") from None
    return verify(envelope)


def _service(signed: Signed) -> ServiceRecord:
    if not isinstance(signed.record, ServiceRecord):
        raise InvalidRecord(f"the header {RECORD_HEADER} holds a record of another kind")
    return signed.record


def _pin(record: ServiceRecord) -> str:
    return f"published:{record.publisher.hex()[:16]}"
