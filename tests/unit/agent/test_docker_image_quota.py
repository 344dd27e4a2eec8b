"""Which images go when the disk's share is used up."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import pytest
from structlog.testing import capture_logs

from agent.docker.image_quota import ImageQuota, StoredImage, surplus
from agent.docker.images import REPOSITORY, image_tag

OLD, NEW = "sha256:" + "0" * 64, "sha256:" + "1" * 64


def image(
    name: str, used_at: float, *, size: int = 30, shared: int = 20, busy: bool = False, pinned: bool = False
) -> StoredImage:
    return StoredImage(name=name, size=size, shared=shared, used_at=used_at, busy=busy, pinned=pinned)


@pytest.mark.parametrize(
    ("images", "quota", "go"),
    [
        ([], 0, []),
        ([image("a", 1), image("b", 2)], 40, []),  # 10 + 10, and 20 that they share
        ([image("b", 2), image("a", 1)], 39, ["a"]),
        ([image("a", 1, busy=True), image("b", 2)], 30, ["b"]),
        ([image("a", 1, pinned=True), image("b", 2)], 0, ["b"]),
        ([image("a", 1), image("b", 2), image("c", 3)], 0, ["a", "b", "c"]),
        ([image("same", 1, size=20), image("b", 2)], 25, ["b"]),  # to remove what others have too frees nothing
    ],
)
def test_the_longest_unused_go_until_the_rest_fits(images: list[StoredImage], quota: int, go: list[str]) -> None:
    assert [image.name for image in surplus(images, quota)] == go


class Engine:
    """Its images by name, each of 10 bytes; as much of `DockerEngine` as a quota needs."""

    def __init__(self, *names: str) -> None:
        self.names = list(names)

    async def call(self, work: Callable[[Any], Any]) -> Any:
        return work(self)

    def df(self) -> dict[str, Any]:
        return {
            "Images": [
                {"Id": name, "RepoTags": [name], "Created": 0, "Size": 10, "SharedSize": 0, "Containers": 0}
                for name in self.names
            ]
        }

    def remove_image(self, name: str) -> None:
        self.names.remove(name)


async def test_what_is_pinned_keeps_its_images_and_an_operator_hears_when_they_are_too_much() -> None:
    """An archive has one image for each of its variants' artifacts."""
    pins: list[str] = [OLD]

    async def pinned() -> Collection[str]:
        return pins

    kept = [image_tag(OLD, None), image_tag(OLD, "small")]
    engine = Engine(*kept, image_tag(NEW, None))
    quota = ImageQuota(engine, quota=10, repository=REPOSITORY, label="", pinned=pinned)  # type: ignore[arg-type]
    with capture_logs() as logs:
        await quota.enforce()
        await quota.enforce()
    assert engine.names == kept
    assert [entry["pinned_bytes"] for entry in logs if entry["event"] == "image-quota-exceeded"] == [20]
    pins.clear()
    await quota.enforce()
    assert len(engine.names) == 1
