"""Files of an archive written to disk: bounded, and never outside the place asked for."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from csar.archive import Archive, open_archive
from csar.limits import DEFAULT_LIMITS, Limits
from csar.refusals import refusal
from protocol.problems import Conflict, DiskFull, Problem

_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
_EXECUTABLE = 0o100 << 16


def extract_directory(path: Path, folder: str, dest: Path, limits: Limits = DEFAULT_LIMITS) -> None:
    """Write what lies below `folder` of the archive ("" is its root) into `dest`, which is new or empty.

    Modes are 0644, or 0755 where the archive marks a file executable. After a failure `dest` is removed.
    Raises InvalidArchive, Conflict if `dest` holds something, DiskFull.
    """
    prefix = folder.strip("/") + "/" if folder.strip("/") else ""
    with open_archive(path, limits) as archive:
        if prefix and prefix.removesuffix("/") not in archive.folders:
            raise refusal("file-missing", f"there is no folder {folder[:255]!r}", "Correct the name.")
        _claim(dest)
        try:
            _write_all(archive, prefix, dest)
        except BaseException:
            shutil.rmtree(dest, ignore_errors=True)
            raise


def extract_file(path: Path, member: str, dest: Path, limits: Limits = DEFAULT_LIMITS) -> None:
    """Write one file of the archive to `dest`, at once and whole. Raises InvalidArchive or DiskFull."""
    partial = dest.with_name(dest.name + ".partial")
    with open_archive(path, limits) as archive:
        archive.entry(member)
        partial.unlink(missing_ok=True)
        try:
            _write(archive, member, partial)
            partial.replace(dest)
        finally:
            partial.unlink(missing_ok=True)


def file_pieces(path: Path, member: str, limits: Limits = DEFAULT_LIMITS) -> Iterator[bytes]:
    """One file of the archive, at most 1 MiB at a time. Raises InvalidArchive, at the latest with the last piece."""
    with open_archive(path, limits) as archive:
        yield from archive.pieces(member)


def _claim(dest: Path) -> None:
    dest.mkdir(parents=True, exist_ok=True)
    if dest.is_symlink() or any(dest.iterdir()):
        raise Conflict(f"{dest} is not an empty folder", fix="Name a new folder.")


def _write_all(archive: Archive, prefix: str, dest: Path) -> None:
    folders: Iterable[str] = (f for f in archive.folders if f.startswith(prefix))
    for folder in sorted(folders):
        (dest / folder.removeprefix(prefix)).mkdir(parents=True, exist_ok=True)
    for name in archive.files:
        if name.startswith(prefix):
            _write(archive, name, dest / name.removeprefix(prefix))


def _write(archive: Archive, name: str, target: Path) -> None:
    mode = 0o755 if archive.entry(name).external_attr & _EXECUTABLE else 0o644
    try:
        with os.fdopen(os.open(target, _NEW_FILE, mode), "wb") as out:
            for piece in archive.pieces(name):
                out.write(piece)
    except OSError as error:
        raise _disk_problem(error, target) from None


def _disk_problem(error: OSError, target: Path) -> Problem:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull(f"no room left to extract to {target}", fix="Free some space.")
    return Conflict(f"cannot write {target}: {error.strerror}", fix="Choose another folder.")
