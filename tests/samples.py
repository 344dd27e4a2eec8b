"""Real photos and a real text for tests, out of free packages: fetched once, checked by digest, never committed."""

from __future__ import annotations

import gzip
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.scripts import packages

LOCK = Path(__file__).with_name("samples.lock")
IN_DARKNET = {
    "dog.jpg": "5a9522051c3cec2bbd2f6323fccba32e8fbf3ddcc2b3e2fd46b04c720bc6f866",
    "eagle.jpg": "f95f57297fd51a6c5ddceb5ed6916fa759d1d65f402fee34c05b31a9608755c0",
    "giraffe.jpg": "00dc48a9b2af8a1fe4c4b79319726591f1033c7e1150f21e7577a79f3b6659f1",
    "horses.jpg": "c8f0a677a1356569e2ce71d2fa88c1030c0ae57ecf5e14170e02d9a86a20dcb4",
    "kite.jpg": "87410f52f79cc256c3949b48a3548632c07c8e9943468ef8caa6250f6643be8e",
    "person.jpg": "cdcbab947e46110fc2b77784ac54ddbbab2640f1e44cb5e91fc8984a9793a7d1",
}
"""Debian's `darknet` (GPL-3+ or MIT or WTFPL), by Joseph Redmon."""
IN_SCIKIT_IMAGE = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg")
"""PyPI's `scikit-image`: NASA's portrait of Eileen Collins, Stefan van der Walt's cat, Rachel Michetti's cup of
coffee and SpaceX's Falcon 9, all in the public domain."""

JARGON_SHA256 = "fcaa76e4c2ebdf90c6557524b9430373dc49d1a26462ef30f43c0ace70a25a3a"


@contextmanager
def packages_or_skip() -> Iterator[None]:
    """Skips the test where packages cannot be had, and says why; CI counts that as a failure."""
    try:
        yield
    except packages.CannotBuild as error:
        pytest.skip(str(error))


def photo(name: str) -> bytes:
    """Skips the test where it cannot be had."""
    with packages_or_skip():
        if name in IN_DARKNET:
            file = packages.debian_package("darknet") / "usr/share/darknet/data" / name
            return bytes(packages.check(file, IN_DARKNET[name]).read_bytes())
        with zipfile.ZipFile(next(packages.locked_wheels(LOCK).glob("*.whl"))) as wheel:
            return wheel.read(f"skimage/data/{name}")


def jargon_file() -> bytes:
    """Debian's `jargon-text`: 1.7 MB with 239,084 words, in the public domain. Skips as well."""
    with packages_or_skip():
        file = packages.debian_package("jargon-text") / "usr/share/doc/jargon-text/jargon.txt.gz"
        return gzip.decompress(packages.check(file, JARGON_SHA256).read_bytes())
