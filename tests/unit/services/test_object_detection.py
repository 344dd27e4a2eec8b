"""services/object_detection names what is on real photos; its two variants differ as its description says."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import yaml
from PIL import Image

from tests.samples import photo
from tests.service_stage import SERVICES, call, serving

ON_PHOTOS = {
    "astronaut.png": {"person": 1},
    "chelsea.png": {"cat": 1},
    "coffee.png": {"cup": 1, "dining table": 1, "spoon": 1},
    "dog.jpg": {"bicycle": 1, "dog": 1, "car": 1},
    "eagle.jpg": {"bird": 1},
    "giraffe.jpg": {"giraffe": 1, "zebra": 1},
    "horses.jpg": {"horse": 5},
    "kite.jpg": {"kite": 7, "person": 12},
    "person.jpg": {"dog": 1, "horse": 1, "person": 1},
}
"""What a person sees."""


@pytest.fixture(scope="module")
def fast(object_detection: ModuleType) -> Iterator[int]:
    with serving(object_detection.application("whole")) as port:
        yield port


@pytest.fixture(scope="module")
def accurate(object_detection: ModuleType) -> Iterator[int]:
    with serving(object_detection.application("parts")) as port:
        yield port


def found(port: int, body: bytes) -> list[dict[str, Any]]:
    answer = call(port, "POST", "/detect", body, Accept="application/json")
    assert answer.status == 200, answer.text
    detections: list[dict[str, Any]] = answer.json["detections"]
    assert all(0.5 <= detection["confidence"] <= 1 for detection in detections)
    return detections


def labels(port: int, name: str) -> Counter[str]:
    return Counter(detection["label"] for detection in found(port, photo(name)))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("dog.jpg", {"bicycle": 1, "dog": 1, "car": 1}),
        ("giraffe.jpg", {"giraffe": 1, "zebra": 1}),
        ("eagle.jpg", {"bird": 1}),
        ("chelsea.png", {"cat": 1}),
        ("coffee.png", {"cup": 1, "dining table": 1}),
        ("astronaut.png", {"person": 1}),
    ],
)
def test_what_is_on_a_photo_is_named(fast: int, name: str, expected: dict[str, int]) -> None:
    assert labels(fast, name) == expected


def test_each_thing_is_where_it_is(fast: int) -> None:
    """The dog sits before the bicycle on the left, the car is behind on the right."""
    boxes = {detection["label"]: detection["box"] for detection in found(fast, photo("dog.jpg"))}
    for label, (x, y) in {"dog": (220, 390), "bicycle": (350, 270), "car": (575, 125)}.items():
        left, top, width, height = boxes[label]
        assert abs(left + width / 2 - x) < 30
        assert abs(top + height / 2 - y) < 30


def test_a_photo_with_nothing_on_it_has_no_boxes(fast: int, accurate: int) -> None:
    empty = io.BytesIO()
    Image.new("RGB", (640, 480), "#a0b0c0").save(empty, "JPEG")
    assert found(fast, empty.getvalue()) == found(accurate, empty.getvalue()) == []


def test_four_horses_are_no_cow_to_the_accurate_variant(accurate: int) -> None:
    assert labels(accurate, "horses.jpg") == {"horse": 4}


@pytest.mark.parametrize("variant", ["fast", "accurate"])
def test_a_variant_finds_the_share_that_its_description_claims(
    request: pytest.FixtureRequest, variant: str, object_detection: ModuleType
) -> None:
    port = request.getfixturevalue(variant)
    seen = {name: labels(port, name) for name in ON_PHOTOS}
    right = sum((seen[name] & Counter(truth)).total() for name, truth in ON_PHOTOS.items())
    description = yaml.safe_load((SERVICES / "object_detection/object_detection.yaml").read_text())
    [node] = description["topology_template"]["node_templates"].values()
    claimed = node["properties"]["variants"][variant]["accuracy"]
    assert right / sum(sum(truth.values()) for truth in ON_PHOTOS.values()) == pytest.approx(claimed, abs=0.03)
