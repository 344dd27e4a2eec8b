"""Which images go when the disk's share is used up."""

from __future__ import annotations

import pytest

from agent.docker.image_quota import StoredImage, surplus


def image(name: str, used_at: float, *, size: int = 30, shared: int = 20, busy: bool = False) -> StoredImage:
    return StoredImage(name=name, size=size, shared=shared, used_at=used_at, busy=busy)


@pytest.mark.parametrize(
    ("images", "quota", "go"),
    [
        ([], 0, []),
        ([image("a", 1), image("b", 2)], 40, []),  # 10 + 10, and 20 that they share
        ([image("b", 2), image("a", 1)], 39, ["a"]),
        ([image("a", 1, busy=True), image("b", 2)], 30, ["b"]),
        ([image("a", 1), image("b", 2), image("c", 3)], 0, ["a", "b", "c"]),
        ([image("same", 1, size=20), image("b", 2)], 25, ["b"]),  # to remove what others have too frees nothing
    ],
)
def test_the_longest_unused_go_until_the_rest_fits(images: list[StoredImage], quota: int, go: list[str]) -> None:
    assert [image.name for image in surplus(images, quota)] == go
