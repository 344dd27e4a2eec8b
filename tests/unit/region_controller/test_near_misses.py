"""What is told where nothing matches: the nearest services with what they lack, categories alike, types that exist."""

from __future__ import annotations

from typing import Any

from protocol.instances import StartRequest
from protocol.problems import NoMatchingService
from region_controller.near_misses import MAX_NEAR, no_such_meaning
from tests.one_region import a_service

FACES = a_service("faces", category="/image/faces", inputs=["image"], outputs=["text"], seq=1)
OBJECTS = a_service("objects", category="/image/objects", inputs=["image", "video"], outputs=["image"], seq=2)
WORDS = a_service("words", category="/text", inputs=["text"], outputs=["integer"], seq=3)
ALL = [FACES, OBJECTS, WORDS]


def missed(category: str, **request: Any) -> NoMatchingService:
    return no_such_meaning(StartRequest(category=category, **request), category, ALL)


def test_who_lacks_least_comes_first_and_says_what_it_lacks() -> None:
    problem = missed("/image", inputs=("image",), outputs=("integer",))
    assert [n["id"] for n in problem.extra["nearest"]] == ["objects", "faces", "words"]
    assert problem.extra["nearest"][0]["lacks_outputs"] == ["integer"]
    assert problem.extra["near"][0] == "objects (service) does not give integer"
    assert problem.extra["near"][2] == "words (service) is in /text and does not take image"
    assert problem.extra["inputs_there"] == ["image", "video"]
    assert problem.extra["outputs_there"] == ["image", "text"]
    assert problem.detail == "no published service has category /image, inputs image, outputs integer"


def test_a_category_that_is_misspelt_or_empty_names_those_near_it() -> None:
    assert missed("/imaeg").extra["categories"][0].startswith("/image/")
    assert set(missed("/image/cats").extra["categories"]) == {"/image/faces", "/image/objects"}
    assert missed("/image", inputs=("sound",)).extra["categories"] == [], "there is something in it"
    found = missed("/video", inputs=("video",))
    assert found.fix == "objects (service) is in /image/objects"


def test_what_is_nothing_like_it_is_not_named() -> None:
    problem = missed("/zzz", inputs=("sound",))
    assert problem.extra["nearest"] == problem.extra["categories"] == []
    assert "cornerstore search" in problem.fix


def test_however_much_is_published_the_answer_is_short() -> None:
    many = [a_service(f"s{i}", category=f"/image/c{i}", inputs=[f"t{i}"]) for i in range(200)]
    problem = no_such_meaning(StartRequest(category="/image", inputs=("x",)), "/image", many)
    assert len(problem.extra["nearest"]) == len(problem.extra["near"]) == MAX_NEAR
    assert len(problem.extra["inputs_there"]) == 16
