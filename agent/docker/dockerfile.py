"""Rewriting `FROM`: a Dockerfile written for a registry builds on local base images. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from fnmatch import fnmatchcase

_FROM = re.compile(r"^(?P<head>\s*FROM\s+(?:--\S+\s+)*)(?P<image>[^\s]+)(?P<tail>.*)$", re.IGNORECASE | re.DOTALL)
_STAGE = re.compile(r"\s+AS\s+(\S+)", re.IGNORECASE)
_HUB = re.compile(r"^(?:docker\.io/|index\.docker\.io/)?(?:library/)?")


def rewrite_from(dockerfile: str, aliases: Mapping[str, str]) -> str:
    """The Dockerfile with the images of its FROM lines replaced by `aliases`; everything else stays byte for byte.

    A key of `aliases` is an image such as `python:3.6-alpine` (no tag means `latest`), or a pattern such as
    `python:3.*`; an exact key wins, then the first pattern that fits. Names of earlier stages are left alone, and so
    are lines that continue another one.
    """
    lines: list[str] = []
    stages: set[str] = set()
    continued = False
    for line in dockerfile.splitlines(keepends=True):
        match = None if continued else _FROM.match(line)
        continued = line.rstrip().endswith("\\") and not line.lstrip().startswith("#")
        if match is None:
            lines.append(line)
            continue
        base = match["image"] if match["image"].lower() in stages else resolve_alias(match["image"], aliases)
        lines.append(match["head"] + base + match["tail"])
        named = _STAGE.match(match["tail"])
        if named is not None:
            stages.add(named[1].lower())
    return "".join(lines)


def resolve_alias(image: str, aliases: Mapping[str, str]) -> str:
    """The local image for `image`, or `image` itself."""
    plain = {_normal(key): value for key, value in aliases.items()}
    wanted = _normal(image)
    if wanted in plain:
        return plain[wanted]
    return next((value for key, value in plain.items() if fnmatchcase(wanted, key)), image)


def _normal(image: str) -> str:
    """`python:latest` for `python`, `docker.io/library/python` and the like."""
    name = _HUB.sub("", image)
    return name if ":" in name.rpartition("/")[2] or "@" in name else name + ":latest"
