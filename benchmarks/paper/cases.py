"""The services that are offloaded: what is sent to each, and how its reply is checked."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.multihost.testbed import REPOSITORY
from tests.samples import photo

BUILD = REPOSITORY / "build"
WORDS = 2_000
JPEG_BEGINS, JPEG_ENDS = b"\xff\xd8", b"\xff\xd9"


@dataclass(frozen=True)
class Case:
    """`name`: the folder in `services/`, and `build/<name>.csar`. `check` raises ValueError for a wrong reply.

    `labels`: what a photo service must see on the photo; asked once, as JSON, before the runs.
    """

    name: str
    path: str
    body: bytes
    check: Callable[[bytes], None]
    labels: frozenset[str] = frozenset()

    @property
    def packed(self) -> Path:
        return BUILD / f"{self.name}.csar"


def check_count(reply: bytes) -> None:
    if int(reply) != WORDS:
        raise ValueError(f"{reply!r} words were counted of {WORDS}")


def check_photo(reply: bytes) -> None:
    if not (reply.startswith(JPEG_BEGINS) and reply.endswith(JPEG_ENDS)):
        raise ValueError(f"no JPEG: {reply[:80]!r}")


def check_labels(case: Case, reply: str) -> None:
    seen = {str(one["label"]) for one in json.loads(reply)["detections"]}
    if not case.labels <= seen:
        raise ValueError(f"{case.name} saw {sorted(seen)}, not {sorted(case.labels)}")


def text() -> bytes:
    """About 12 KB: the paper's word count is tiny, too."""
    dice = random.Random(2019)
    words = ["".join(dice.choices("etaoinshrdlu", k=dice.randint(2, 8))) for _ in range(WORDS)]
    return " ".join(words).encode()


def as_jpeg(picture: bytes) -> bytes:
    """As a phone's camera would write it."""
    from PIL import Image  # comes with matplotlib

    file = io.BytesIO()
    Image.open(io.BytesIO(picture)).convert("RGB").save(file, "JPEG", quality=90)
    return file.getvalue()


def word_count() -> Case:
    return Case("word_count", "/wordcount", text(), check_count)


def cases() -> list[Case]:
    """The paper's three, in its order from small to large."""
    return [
        word_count(),
        Case("face_detection", "/detect", as_jpeg(photo("astronaut.png")), check_photo, frozenset({"face"})),
        Case("object_detection", "/detect", photo("dog.jpg"), check_photo, frozenset({"dog", "bicycle"})),
    ]
