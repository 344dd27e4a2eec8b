"""A hostile zip file, opened from a path and never read whole into memory.

`open_archive` checks in the order of cost: file size, end-of-central-directory record, then the directory that
`zipfile` builds, then local headers. What passes can be read and extracted with bounded memory, and nothing of it
can name a place outside a target folder. The source of the format is PKWARE's APPNOTE.TXT 6.3.
"""

from __future__ import annotations

import re
import stat
import struct
import unicodedata
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from csar.limits import Limits
from csar.refusals import refusal
from protocol.problems import NotFound

_LOCAL = struct.Struct("<4s5H3I2H")
_END = struct.Struct("<4s4H2IH")
_LOCAL_MAGIC, _END_MAGIC, _ZIP64_MAGIC = b"PK\x03\x04", b"PK\x05\x06", b"PK\x06\x07"
_ZIP64_LOCATOR_BYTES = 20
_MAX_COMMENT = 0xFFFF
_ENCRYPTED_FLAGS = 0x0001 | 0x0040 | 0x2000
_DIRECTORY_BYTES_PER_ENTRY = 1024
_DRIVE = re.compile(r"[A-Za-z]:")
_PIECE = 1 << 20

ZIP_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
    ValueError,
    OverflowError,
    IndexError,
    KeyError,
)
"""What `zipfile` raises over malformed archives (ValueError includes UnicodeDecodeError)."""


class Archive:
    """An opened archive whose directory passed every guard. Paths use `/` and have no leading or trailing slash."""

    def __init__(self, opened: zipfile.ZipFile, limits: Limits) -> None:
        self._zip = opened
        self.limits = limits
        self.files = {entry.filename: entry for entry in opened.infolist() if not entry.is_dir()}
        self.folders = frozenset(_folders(opened.namelist()))

    def read(self, name: str, limit: int, *, code: str) -> bytes:
        """The file's bytes. Raises InvalidArchive with `code` above `limit` bytes."""
        if self.entry(name).file_size > limit:
            raise refusal(code, f"the file holds more than {limit} bytes", "Make it smaller.", file=name)
        return b"".join(self.pieces(name))

    def entry(self, name: str) -> zipfile.ZipInfo:
        if name not in self.files:
            raise refusal("file-missing", f"{name[:255]!r} is not in the archive", "Add it, or correct the name.")
        return self.files[name]

    def pieces(self, name: str) -> Iterator[bytes]:
        """The file's data, at most 1 MiB at a time; its size and checksum are checked on the way."""
        entry = self.entry(name)
        left = entry.file_size
        try:
            with self._zip.open(entry) as data:
                while piece := data.read(_PIECE):
                    left -= len(piece)
                    yield piece
        except ZIP_ERRORS as error:
            raise _corrupt(name, str(error)) from None
        if left:
            raise _corrupt(name, "the data is shorter or longer than declared")

    def verify(self) -> None:
        """Read every file once: afterwards all sizes and checksums are known to be true."""
        for name in self.files:
            for _ in self.pieces(name):
                pass

    def starts_with(self, name: str, magic: bytes) -> bool:
        piece = next(self.pieces(name), b"")
        return piece.startswith(magic)


@contextmanager
def open_archive(path: Path, limits: Limits) -> Iterator[Archive]:
    """Open and check. Raises InvalidArchive, or NotFound if there is no file at `path`."""
    try:
        file = path.open("rb")
    except OSError as error:
        raise NotFound(f"{path} cannot be read: {error.strerror}", fix="Name a CSAR file.") from None
    with file:
        count, directory_at = _check_end(file, limits)
        try:
            opened = zipfile.ZipFile(file)
        except ZIP_ERRORS as error:
            raise _bad_directory(str(error)) from None
        with opened:
            if len(opened.infolist()) != count:
                raise _bad_directory("it lists more or fewer entries than it counts")
            _check_entries(opened.infolist(), limits)
            _check_layout(file, opened.infolist(), directory_at)
            yield Archive(opened, limits)


def _check_end(file: BinaryIO, limits: Limits) -> tuple[int, int]:
    """Check size, first and last record, before `zipfile` allocates anything.

    Returns the number of entries and the directory's offset.
    """
    size = file.seek(0, 2)
    if size == 0:
        raise refusal("empty", "the file is empty", "Pack the service again.")
    if size > limits.archive_bytes:
        raise refusal(
            "archive-too-large",
            f"the archive has {size} bytes, {limits.archive_bytes} are allowed",
            "Make the image or model smaller, or raise the node's limit.",
        )
    file.seek(max(0, size - _END.size - _MAX_COMMENT))
    tail = file.read()
    at = tail.rfind(_END_MAGIC)
    if at < 0 or at + _END.size > len(tail):
        raise refusal(
            "not-a-zip",
            "the file is not a CSAR: it is no zip, or was cut off",
            "Make one with `cornerstore pack FOLDER`, or fetch it again.",
        )
    _, disk, first_disk, here, entries, length, offset, comment = _END.unpack_from(tail, at)
    end = size - len(tail) + at
    if end + _END.size + comment != size:
        raise refusal("trailing-data", "bytes follow the end of the archive", "Pack the service again.")
    if tail[max(0, at - _ZIP64_LOCATOR_BYTES) :].startswith(_ZIP64_MAGIC):
        raise refusal("zip64", "the archive has a zip64 directory", "Pack the service again without zip64.")
    if disk or first_disk or here != entries:
        raise refusal("split-archive", "the archive is split over several files", "Pack the service into one file.")
    if entries > limits.entries or length > limits.entries * _DIRECTORY_BYTES_PER_ENTRY:
        raise refusal(
            "too-many-entries",
            f"the archive lists {entries} entries, {limits.entries} are allowed",
            "Ship many small files as one image or archive.",
        )
    if not entries:
        raise refusal("empty", "the archive has no entries", "Pack the service again.")
    file.seek(0)
    if offset + length != end or file.read(4) != _LOCAL_MAGIC:
        raise refusal("prepended-data", "bytes stand before the archive's first entry", "Pack the service again.")
    return int(entries), int(offset)


def _check_entries(entries: list[zipfile.ZipInfo], limits: Limits) -> None:
    for entry in entries:
        # zipfile cuts `filename` at a NUL; the original is what other tools see.
        _check_name(entry.orig_filename, limits)
        _check_kind(entry)
    if sum(entry.file_size for entry in entries) > limits.unpacked_bytes:
        raise refusal(
            "unpacked-too-large",
            f"the files unpack to more than {limits.unpacked_bytes} bytes",
            "Make the image or model smaller, or raise the node's limit.",
        )
    unpacked, packed = sum(e.file_size for e in entries), sum(e.compress_size for e in entries)
    if unpacked > limits.ratio * max(packed, limits.ratio_floor):
        raise refusal(
            "compression-ratio",
            f"the files unpack to more than {limits.ratio} times their packed size",
            "Store such files uncompressed, or leave them out.",
        )
    for entry in entries:
        if entry.file_size > limits.ratio_floor and entry.file_size > limits.ratio * max(1, entry.compress_size):
            raise refusal(
                "compression-ratio",
                f"the file unpacks to more than {limits.ratio} times its packed size",
                "Store such a file uncompressed, or leave it out.",
                file=entry.filename,
            )
    _check_unique(entries)


def _check_name(name: str, limits: Limits) -> None:
    shown = name[:80]
    fix = "Use relative names with / between folders."
    parts = name.removesuffix("/").split("/")
    if len(name.encode("utf-8", "replace")) > limits.name_bytes:
        raise refusal("name-too-long", f"a name has more than {limits.name_bytes} bytes: {shown!r}", "Shorten it.")
    if name.startswith("/") or _DRIVE.match(name):
        raise refusal("absolute-path", f"{shown!r} is an absolute path", fix)
    if "\\" in name or any(unicodedata.category(char).startswith("C") for char in name) or "" in parts:
        raise refusal("unsafe-path", f"{shown!r} is not a plain relative path", fix)
    if "." in parts or ".." in parts:
        raise refusal("path-traversal", f"{shown!r} leaves its folder", fix)
    if len(parts) > limits.depth:
        raise refusal("too-deep", f"{shown!r} has more than {limits.depth} folders", "Use fewer folders.")


def _check_kind(entry: zipfile.ZipInfo) -> None:
    if entry.flag_bits & _ENCRYPTED_FLAGS:
        raise refusal("encrypted", "the entry is encrypted", "Pack without a password.", file=entry.filename)
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise refusal(
            "compression-method",
            f"compression method {entry.compress_type} is not allowed",
            "Store or deflate the file.",
            file=entry.filename,
        )
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise refusal(
            "special-file",
            "the entry is a symbolic link or a special file",
            "Put a plain file in its place.",
            file=entry.filename,
        )
    if entry.is_dir() and entry.file_size:
        raise _corrupt(entry.filename, "a folder holds data")
    if entry.compress_type == zipfile.ZIP_STORED and entry.file_size != entry.compress_size:
        raise _corrupt(entry.filename, "a stored file has two sizes")


def _check_unique(entries: list[zipfile.ZipInfo]) -> None:
    seen: dict[str, zipfile.ZipInfo] = {}
    for entry in entries:
        key = _comparable(entry.filename)
        if key in seen:
            raise refusal(
                "duplicate-entry",
                f"the name equals {seen[key].filename!r} on some file systems",
                "Rename or remove one of them.",
                file=entry.filename,
            )
        seen[key] = entry
    for key in seen:
        for parent in _parents(key):
            if parent in seen and not seen[parent].is_dir():
                raise refusal(
                    "file-as-folder",
                    f"{seen[key].filename!r} lies below a file",
                    "Rename one of them.",
                    file=seen[parent].filename,
                )


def _check_layout(file: BinaryIO, entries: list[zipfile.ZipInfo], directory_at: int) -> None:
    """Entries lie one after another before the directory: bytes that two entries share are a quoted bomb."""
    before, last = 0, ""
    for entry in sorted(entries, key=lambda e: e.header_offset):
        file.seek(entry.header_offset)
        header = file.read(_LOCAL.size)
        if len(header) < _LOCAL.size or not header.startswith(_LOCAL_MAGIC):
            raise _corrupt(entry.filename, "it has no local header")
        *_, name_length, extra_length = _LOCAL.unpack(header)
        if entry.header_offset < before:
            raise refusal(
                "overlapping-entries",
                f"the entry shares bytes with {last!r}",
                "Pack the service again.",
                file=entry.filename,
            )
        before = entry.header_offset + _LOCAL.size + name_length + extra_length + entry.compress_size
        last = entry.filename
        if before > directory_at:
            raise refusal(
                "overlapping-entries",
                "the entry shares bytes with the directory",
                "Pack the service again.",
                file=last,
            )


def _comparable(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name.removesuffix("/")).casefold())


def _parents(name: str) -> Iterator[str]:
    while "/" in name:
        name = name.rpartition("/")[0]
        yield name


def _folders(names: Iterable[str]) -> Iterator[str]:
    for name in names:
        if name.endswith("/"):
            yield name.removesuffix("/")
        yield from _parents(name.removesuffix("/"))


def _corrupt(name: str, why: str) -> Exception:
    return refusal("corrupt-entry", f"the entry is damaged: {why[:120]}", "Fetch or pack it again.", file=name[:255])


def _bad_directory(why: str) -> Exception:
    return refusal("corrupt-directory", f"the central directory is damaged: {why[:120]}", "Fetch or pack it again.")
