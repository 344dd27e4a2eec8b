"""Keeps the images of services within a quota of the disk: those unused for longest go first.

An image goes only if no container is made of it, running or stopped, no start touched it lately, and the archive that
it is made of is not pinned on this node (published here, kept by an operator, of an instance); a base image never does.
Images that a rebuild replaced lose their names and go as soon as their last container has gone.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator
from typing import Any

import docker.errors
import stamina
import structlog
from msgspec import Struct

from agent.docker.engine import Api, DockerEngine
from agent.docker.images import digest_tag
from protocol.problems import Problem

log = structlog.get_logger(__name__)

GRACE_S = 300.0
"""A start that found its image has made its container after so long; a build has given its image its name."""
IN_TURN_S = 30.0
"""For who else measures the engine's disk."""

Pinned = Callable[[], Awaitable[Collection[str]]]
"""Digests of the archives that must stay on this node."""


class StoredImage(Struct, frozen=True):
    """`size` of all its layers, `shared` of those that other images have too, in bytes; `used_at` in Unix s.

    `name` is what it is removed by. `busy`: a container or a start needs it. `pinned`: its archive is.
    """

    name: str
    size: int
    shared: int
    used_at: float
    busy: bool = False
    pinned: bool = False


def occupied(images: Collection[StoredImage]) -> int:
    """Bytes. Layers that images share are counted once: they are mostly one base's."""
    return sum(image.size - image.shared for image in images) + max((i.shared for i in images), default=0)


def surplus(images: Iterable[StoredImage], quota: int) -> Iterator[StoredImage]:
    """The images to remove, in order."""
    everything = list(images)
    used = occupied(everything)
    for image in sorted(everything, key=lambda image: image.used_at):
        if used <= quota:
            return
        if not (image.busy or image.pinned) and image.size > image.shared:
            used -= image.size - image.shared
            yield image


class ImageQuota:
    """`quota` in bytes. Images named `repository:...`, and nameless ones with the label `label`, are services'.

    Those made of `pinned` archives stay.
    """

    def __init__(
        self,
        engine: DockerEngine,
        *,
        quota: int,
        repository: str,
        label: str,
        pinned: Pinned,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._engine = engine
        self._quota = quota
        self._prefix = f"{repository}:"
        self._label = label
        self._pinned = pinned
        self._clock = clock
        self._used_at: dict[str, float] = {}
        self._exceeded = False
        self._lock = asyncio.Lock()
        self._in_turn = stamina.AsyncRetryingCaller(attempts=None, timeout=IN_TURN_S, wait_initial=0.1, wait_max=1.0)

    def touch(self, name: str) -> None:
        """A start is about to use it."""
        self._used_at[name] = self._clock()

    async def enforce(self) -> None:
        """Remove what is too much. Whatever the engine refuses to give up stays; nothing is raised."""
        async with self._lock:
            try:
                images = await self._in_turn(_is_measuring, self._images)
                pinned = {digest_tag(digest) for digest in await self._pinned()}
                stored = [image for entry in images if (image := self._stored(entry, pinned)) is not None]
                superseded = [image for image in stored if not image.name.startswith(self._prefix)]
                named = [image for image in stored if image.name.startswith(self._prefix)]
                for image in [*(i for i in superseded if not i.busy), *surplus(named, self._quota)]:
                    await self.remove(image.name)
                self._tell(occupied([image for image in named if image.pinned]))
            except (Problem, docker.errors.APIError) as error:
                log.warning("image-quota-not-kept", error=str(error))

    def _tell(self, pinned_bytes: int) -> None:
        """An operator hears of it once, when what is pinned alone is more than the quota."""
        exceeded = pinned_bytes > self._quota
        if exceeded and not self._exceeded:
            log.warning(
                "image-quota-exceeded",
                pinned_bytes=pinned_bytes,
                fix="Raise `image_quota_gb` under [agent.docker], or withdraw services that were published here.",
            )
        self._exceeded = exceeded

    async def _images(self) -> list[dict[str, Any]]:
        return await self._engine.call(lambda api: api.df()["Images"] or [])

    async def remove(self, name: str) -> None:
        """Unless a container uses it. Raises EngineUnavailable."""
        try:
            await self._engine.call(lambda api: _remove(api, name))
        except docker.errors.APIError as error:
            log.debug("image-kept", image=name, reason=str(error.explanation or error))
            return
        self._used_at.pop(name, None)
        log.info("image-removed", image=name)

    def _stored(self, entry: dict[str, Any], pinned: Collection[str]) -> StoredImage | None:
        """One of the engine's images, None if it is no service's."""
        names = [name for name in entry.get("RepoTags") or () if name != "<none>:<none>"]
        ours = [name for name in names if name.startswith(self._prefix)]
        if len(ours) < len(names) or not (names or self._label in (entry.get("Labels") or {})):
            return None
        name = ours[0] if ours else str(entry["Id"])
        used_at = max([float(entry["Created"]), *(self._used_at.get(its, 0.0) for its in ours)])
        return StoredImage(
            name=name,
            size=entry["Size"],
            shared=max(entry["SharedSize"], 0),
            used_at=used_at,
            busy=entry["Containers"] > 0 or used_at > self._clock() - GRACE_S,
            pinned=any(_archive_part(its) in pinned for its in ours),
        )


def _archive_part(name: str) -> str:
    """What of a name says which archive the image is made of; see `images.image_tag`."""
    return name.partition(":")[2].partition("-")[0]


def _is_measuring(error: Exception) -> bool:
    """The engine measures its disk for one asker at a time, and refuses the others (a second agent, an operator)."""
    return isinstance(error, docker.errors.APIError) and "disk usage operation is already running" in str(error)


def _remove(api: Api, name: str) -> None:
    api.remove_image(name)
