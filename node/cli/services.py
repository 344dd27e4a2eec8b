"""Naming a published service by the beginning of its digest, as tables show it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from protocol.identifiers import DIGEST_PREFIX
from protocol.instances import ServiceView
from protocol.problems import AmbiguousService

if TYPE_CHECKING:
    from client import ControllerClient

_BEGINNING = re.compile(r"(?:sha256:)?([0-9a-f]{4,63})")


async def whole_digest(client: ControllerClient, text: str) -> str | None:
    """The digest of the one published service that `text` begins, with or without `sha256:`, 4 digits or more.

    None if there is none. Raises AmbiguousService if there are several.
    """
    match = _BEGINNING.fullmatch(text)
    if match is None:
        return None
    first_of: dict[str, ServiceView] = {}
    for service in (await client.services(category="/")).items:
        if service.digest.startswith(DIGEST_PREFIX + match[1]):
            first_of.setdefault(service.digest, service)
    if len(first_of) > 1:
        raise AmbiguousService(
            f"the digests of {len(first_of)} services begin with {text}",
            fix="Write more of it.",
            candidates=candidates(first_of.values()),
        )
    return next(iter(first_of), None)


def candidates(services: Iterable[ServiceView]) -> list[dict[str, Any]]:
    """As an AmbiguousService lists them."""
    return [{"digest": s.digest, "id": s.id, "name": s.name, "publisher": s.publisher[:16]} for s in services]
