"""Image archives (`docker save`): reading what they hold and taking the names out. Nothing is unpacked to the disk."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

from protocol.problems import BuildFailed

MANIFEST = "manifest.json"
NAMES = frozenset({MANIFEST, "repositories", "index.json"})
MAX_MANIFEST = 1 << 20


def without_tags(source: Path, target: Path) -> str:
    """Copy an image archive without the names it claims; returns the image's id, `sha256:<hex>`.

    Raises BuildFailed unless it is an archive of exactly one image.
    """
    try:
        with tarfile.open(source, "r:") as archive, tarfile.open(target, "w:") as copy:
            manifest = _manifest(archive)
            config = str(manifest["Config"])
            for member in archive:
                if member.name.removeprefix("./") in NAMES:
                    continue
                copy.addfile(member, archive.extractfile(member) if member.isreg() else None)
            _add(copy, MANIFEST, json.dumps([{**manifest, "RepoTags": None}]).encode())
    except (tarfile.TarError, ValueError, KeyError, TypeError, OSError) as error:
        raise BuildFailed(
            f"the image archive cannot be read: {error}", fix="Make it with `docker save`, uncompressed.", log=[]
        ) from error
    return "sha256:" + Path(config).name.removesuffix(".json").removeprefix("sha256:")


def _manifest(archive: tarfile.TarFile) -> dict[str, Any]:
    member = next((m for m in archive if m.name.removeprefix("./") == MANIFEST), None)
    if member is None or not member.isreg() or member.size > MAX_MANIFEST:
        raise ValueError("it has no manifest.json")
    opened = archive.extractfile(member)
    assert opened is not None
    images = json.load(opened)
    if not isinstance(images, list) or len(images) != 1 or not isinstance(images[0], dict):
        raise ValueError("it must hold exactly one image")
    return images[0]


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))
