"""Thin image archives: `docker save` without the layers of a base image that the edge has anyway.

An engine that has the base loads such an archive as it would the whole one: it looks for each layer by the digests of
all layers up to it, and opens the archive only for those that it lacks. An engine without the base refuses it.
The format: an archive's `manifest.json` names a configuration and the layers' files, lowest first; the configuration's
`rootfs.diff_ids` are the digests of the unpacked layers in the same order (Docker image specification v1.2).
"""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

from protocol.problems import BadRequest

MANIFEST = "manifest.json"
_MAX_JSON = 4 << 20


def thin_image(whole: Path, base: Path, thin: Path) -> bool:
    """Copy the image archive `whole` to `thin` without the layers of the image archive `base`.

    False, and no copy, if `whole` is not built on `base`. Raises BadRequest if one of them is no image archive.
    """
    layers, diff_ids = _layers(whole)
    _, base_ids = _layers(base)
    if diff_ids[: len(base_ids)] != base_ids:
        return False
    # One file may serve as several layers: it stays if one that is needed is among them.
    left_out = set(layers[: len(base_ids)]) - set(layers[len(base_ids) :])
    with tarfile.open(whole, "r:") as archive, tarfile.open(thin, "w:") as copy:
        for member in archive:
            if member.name.removeprefix("./") not in left_out:
                copy.addfile(member, archive.extractfile(member) if member.isreg() else None)
    return True


def _layers(path: Path) -> tuple[list[str], list[str]]:
    """The layers' files and the digests of what they hold, lowest first."""
    try:
        with tarfile.open(path, "r:") as archive:
            manifest = _json(archive, MANIFEST)
            if len(manifest) != 1:
                raise ValueError("it must hold exactly one image")
            files = [str(name) for name in manifest[0]["Layers"]]
            diff_ids = [str(digest) for digest in _json(archive, manifest[0]["Config"])["rootfs"]["diff_ids"]]
    except (tarfile.TarError, ValueError, KeyError, TypeError, OSError) as error:
        raise BadRequest(f"{path} is no image archive: {error}", fix="Make it with `docker save IMAGE`.") from None
    return files, diff_ids


def _json(archive: tarfile.TarFile, name: str) -> Any:
    member = archive.getmember(name)
    opened = archive.extractfile(member)
    if opened is None or member.size > _MAX_JSON:
        raise ValueError(f"{name} is too large, or no file")
    return json.load(opened)
