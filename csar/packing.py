"""`pack`: a folder becomes a CSAR. The same files give the same bytes, and so one digest.

Files above 1 MiB, image archives and WebAssembly modules are stored uncompressed: content-defined chunks of two
versions match only if nothing compressed them. All else is deflated. (Deflate's output depends on the zlib in use:
byte-equal archives need the same zlib, equal contents do not.)
"""

from __future__ import annotations

import os
import stat
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from csar.limits import DEFAULT_LIMITS, Limits
from csar.meta import META_PATH, entry_without_meta, meta_text
from csar.parser import describe_sync
from csar.profile import PROFILE_FILE, PROFILE_TEXT
from csar.refusals import refusal
from csar.thin_image import thin_image
from protocol.problems import BadRequest
from protocol.service import ServiceDescriptor

STORED_ABOVE = 1 << 20
STORED_SUFFIXES = (".tar", ".wasm")
IGNORED = frozenset({".git", "__pycache__", ".DS_Store"})
_EPOCH = (1980, 1, 1, 0, 0, 0)
_UNIX = 3
_PIECE = 1 << 20


def pack(directory: Path, out: Path, limits: Limits = DEFAULT_LIMITS, *, over: Path | None = None) -> ServiceDescriptor:
    """Write the CSAR of `directory` to `out`, validated, at once and whole. Blocks.

    With `over`, the image archive of a base, the folder's image archives are packed without the base's layers: then
    the service runs where the base is, and is much smaller. Raises InvalidArchive as `describe` does, BadRequest if
    `directory` is no folder, `out` lies in it, or nothing there is built on `over`. TOSCA.meta is written where it
    is absent and one YAML file stands at the root.
    """
    if not directory.is_dir():
        raise BadRequest(f"{directory} is not a folder", fix="Name the folder that holds the service's TOSCA file.")
    if out.resolve().is_relative_to(directory.resolve()):
        raise BadRequest(f"{out} lies in the folder that is packed", fix="Name an output outside of it.")
    if not out.parent.is_dir():
        raise BadRequest(f"{out.parent} is not a folder", fix="Name an output in a folder that exists.")
    partial = out.with_name(f"{out.name}.{os.getpid()}.partial")
    try:
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=".thin-") as scratch:
            sources = dict(sorted(_sources(directory, "")))
            if over is not None:
                sources |= _thinned(sources, over, Path(scratch))
            _write_archive(sources, partial)
        descriptor = describe_sync(partial, limits)
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)
    return descriptor


def _thinned(sources: dict[str, Path], base: Path, scratch: Path) -> dict[str, Path]:
    """The sources that are images built on `base`, each as a thin copy in `scratch`. Raises BadRequest for none."""
    found = {}
    for number, (name, source) in enumerate(sources.items()):
        thin = scratch / f"{number}.tar"
        if name.endswith(".tar") and thin_image(source, base, thin):
            found[name] = thin
    if not found:
        raise BadRequest(
            f"the folder has no image that is built on the one in {base}",
            fix="Save both with `docker save`, the base as it was when the image was built.",
        )
    return found


def _write_archive(sources: dict[str, Path], target: Path) -> None:
    generated = _generated(sources)
    with target.open("wb") as file:
        with zipfile.ZipFile(file, "w") as archive:
            for name in sorted(sources.keys() | generated.keys()):
                if name in generated:
                    archive.writestr(_entry(name, len(generated[name]), 0), generated[name], compresslevel=9)
                else:
                    _add(archive, name, sources[name])
        file.flush()
        os.fsync(file.fileno())


def _sources(folder: Path, prefix: str) -> Iterator[tuple[str, Path]]:
    for path in folder.iterdir():
        name = prefix + path.name
        mode = path.lstat().st_mode
        if path.name in IGNORED or path.suffix in (".csar", ".pyc"):
            continue
        if stat.S_ISDIR(mode):
            yield from _sources(path, name + "/")
        elif stat.S_ISREG(mode):
            yield name, path
        else:
            fix = "Put a plain file in its place."
            raise refusal("special-file", "it is a symbolic link or a special file", fix, file=name)


def _generated(sources: dict[str, Path]) -> dict[str, bytes]:
    """What the archive needs and the folder lacks: TOSCA.meta, and the profile that a portable template imports."""
    made: dict[str, bytes] = {}
    if META_PATH not in sources:
        entry = entry_without_meta(sources)
        made[META_PATH] = meta_text(entry).encode()
        if PROFILE_FILE not in sources and PROFILE_FILE.encode() in sources[entry].read_bytes():
            made[PROFILE_FILE] = PROFILE_TEXT.encode()
    return made


def _add(archive: zipfile.ZipFile, name: str, source: Path) -> None:
    status = source.stat()
    entry = _entry(name, status.st_size, status.st_mode & stat.S_IXUSR)
    with source.open("rb") as data, archive.open(entry, "w") as packed:
        while piece := data.read(_PIECE):
            packed.write(piece)


def _entry(name: str, size: int, executable: int) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, _EPOCH)
    entry.create_system = _UNIX
    entry.external_attr = (stat.S_IFREG | (0o755 if executable else 0o644)) << 16
    stored = size > STORED_ABOVE or name.endswith(STORED_SUFFIXES)
    entry.compress_type = zipfile.ZIP_STORED if stored else zipfile.ZIP_DEFLATED
    entry.file_size = size
    return entry
