"""services/face_detection finds the faces on real photos, and none elsewhere."""

from __future__ import annotations

import io

import pytest
from PIL import Image

from tests.samples import photo
from tests.service_stage import call

FACE = (174, 66, 98, 98)
"""Where Eileen Collins's face is on her portrait."""


def faces(port: int, body: bytes) -> list[tuple[int, int, int, int]]:
    answer = call(port, "POST", "/detect", body, Accept="application/json").json
    assert all(found["label"] == "face" for found in answer["detections"])
    return [tuple(found["box"]) for found in answer["detections"]]


def shared(one: tuple[int, int, int, int], two: tuple[int, int, int, int]) -> float:
    """Intersection over union."""
    width = min(one[0] + one[2], two[0] + two[2]) - max(one[0], two[0])
    height = min(one[1] + one[3], two[1] + two[3]) - max(one[1], two[1])
    common = max(width, 0) * max(height, 0)
    return common / (one[2] * one[3] + two[2] * two[3] - common)


def test_a_portrait_has_one_face_where_it_is(face_detection: int) -> None:
    [face] = faces(face_detection, photo("astronaut.png"))
    assert shared(face, FACE) > 0.7


def test_two_people_have_two_faces(face_detection: int) -> None:
    person = Image.open(io.BytesIO(photo("astronaut.png"))).convert("RGB").crop((60, 0, 460, 400))
    pair = Image.new("RGB", (800, 400))
    pair.paste(person, (0, 0))
    pair.paste(person, (400, 0))
    file = io.BytesIO()
    pair.save(file, "JPEG")
    found = sorted(faces(face_detection, file.getvalue()))
    assert len(found) == 2
    for face, left in zip(found, (0, 400), strict=True):
        assert shared(face, (FACE[0] - 60 + left, *FACE[1:])) > 0.6


@pytest.mark.parametrize("name", ["chelsea.png", "coffee.png", "dog.jpg", "eagle.jpg", "horses.jpg", "rocket.jpg"])
def test_a_photo_without_people_has_none(face_detection: int, name: str) -> None:
    assert faces(face_detection, photo(name)) == []
