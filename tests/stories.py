"""`tests/scenarios/*.txt`: blocks of lines, each with a title; lines that begin with `#` are remarks."""

from __future__ import annotations

import re
from pathlib import Path

SCENARIOS = Path(__file__).parent / "scenarios"


def stories(name: str) -> list[tuple[str, list[str]]]:
    """Title and lines of each story of a scenario file, in order."""
    text = re.sub(r"(?m)^#.*\n", "", (SCENARIOS / name).read_text())
    told = []
    for block in text.strip().split("\n\n"):
        title, *lines = block.splitlines()
        told.append((title, [line.strip() for line in lines]))
    return told
