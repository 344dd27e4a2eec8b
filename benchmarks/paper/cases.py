"""The services that are offloaded: what is sent to each, and how its reply is checked."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.multihost.testbed import REPOSITORY

BUILD = REPOSITORY / "build"
WORDS = 2_000


@dataclass(frozen=True)
class Case:
    """`name`: the folder in `services/`, and `build/<name>.csar`. `check` raises ValueError for a wrong reply."""

    name: str
    path: str
    body: bytes
    check: Callable[[bytes], None]

    @property
    def archive(self) -> Path:
        return BUILD / f"{self.name}.csar"


def word_count() -> Case:
    """About 12 KB of text: the paper's is tiny, too."""
    dice = random.Random(2019)
    words = ["".join(dice.choices("etaoinshrdlu", k=dice.randint(2, 8))) for _ in range(WORDS)]

    def check(reply: bytes) -> None:
        if int(reply) != WORDS:
            raise ValueError(f"{reply!r} words were counted of {WORDS}")

    return Case("word_count", "/wordcount", " ".join(words).encode(), check)


def cases() -> list[Case]:
    """All of the paper's that this repository has."""
    return [word_count()]
