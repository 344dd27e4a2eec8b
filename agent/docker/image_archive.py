"""Image archives (`docker save`) on their way to the engine, without the names they claim. Nothing touches the disk."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from protocol.problems import BuildFailed

MANIFEST = "manifest.json"
NAMES = frozenset({MANIFEST, "repositories", "index.json"})
MAX_MANIFEST = 1 << 20
_PIECE = 1 << 20


class NamelessArchive:
    """An image archive of exactly one image, as the pieces of a tar, with the names taken out.

    Iterating raises BuildFailed for anything else, and whatever `pieces` raises. `image` is known afterwards.
    """

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = pieces
        self._manifest: dict[str, Any] | None = None

    @property
    def image(self) -> str:
        """The image's id, `sha256:<hex>`."""
        assert self._manifest is not None, "the archive was not read to its end"
        return "sha256:" + Path(self._manifest["Config"]).name.removesuffix(".json").removeprefix("sha256:")

    def __iter__(self) -> Iterator[bytes]:
        try:
            pieces = iter(self._pieces)
            with tarfile.open(fileobj=_Reader(pieces), mode="r|") as archive:
                for member in archive:
                    yield from self._passed(archive, member)
            for _ in pieces:  # what follows a tar's end counts for its checksum only
                pass
            yield from self._end()
        except (tarfile.TarError, ValueError, KeyError, TypeError, OSError) as error:
            raise BuildFailed(
                f"the image archive cannot be read: {error}", fix="Make it with `docker save`, uncompressed.", log=[]
            ) from error

    def _passed(self, archive: tarfile.TarFile, member: tarfile.TarInfo) -> Iterator[bytes]:
        name = member.name.removeprefix("./")
        if name == MANIFEST:
            self._manifest = _manifest(archive, member)
        if name in NAMES:
            return
        if member.issparse():
            raise ValueError(f"{name[:80]!r} is sparse")
        yield member.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
        if member.isreg():
            data = archive.extractfile(member)
            assert data is not None
            while piece := data.read(_PIECE):
                yield piece
            yield _padding(member.size)

    def _end(self) -> Iterator[bytes]:
        if self._manifest is None:
            raise ValueError("it has no manifest.json")
        data = json.dumps([{**self._manifest, "RepoTags": None}]).encode()
        member = tarfile.TarInfo(MANIFEST)
        member.size = len(data)
        yield member.tobuf() + data + _padding(len(data)) + bytes(2 * tarfile.BLOCKSIZE)


class _Reader(io.RawIOBase):
    """Pieces of bytes as the readable file that `tarfile` wants."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        """Up to `size` bytes, fewer only at the end of a piece; none at the end of all."""
        if not self._rest:
            self._rest = memoryview(next(self._pieces, b""))
        taken = self._rest[:size] if size >= 0 else self._rest
        self._rest = self._rest[len(taken) :]
        return bytes(taken)


def _manifest(archive: tarfile.TarFile, member: tarfile.TarInfo) -> dict[str, Any]:
    if not member.isreg() or member.size > MAX_MANIFEST:
        raise ValueError("its manifest.json is too large, or no file")
    opened = archive.extractfile(member)
    assert opened is not None
    images = json.load(opened)
    if not isinstance(images, list) or len(images) != 1 or not isinstance(images[0], dict):
        raise ValueError("it must hold exactly one image")
    found: dict[str, Any] = images[0]
    found["Config"] = str(found["Config"])
    return found


def _padding(size: int) -> bytes:
    return bytes(-size % tarfile.BLOCKSIZE)
