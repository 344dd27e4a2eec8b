"""The photo services as `make services` packs them, in this process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from tests.samples import packages_or_skip
from tests.scripts import pack_service
from tests.service_stage import SERVICES, load, serving


def photo_service(name: str, folder: Path) -> ModuleType:
    """The module `app` of the service. Skips the test where a package that it is made of cannot be had."""
    with packages_or_skip():
        assembled = pack_service.assemble(SERVICES / name, folder)
    return load(assembled / name.replace("_", ""))


@pytest.fixture(scope="session")
def face_detection(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a face detection."""
    module = photo_service("face_detection", tmp_path_factory.mktemp("face_detection"))
    with serving(module.application()) as port:
        yield port


@pytest.fixture(scope="session")
def object_detection(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """The module `app` of the object detection."""
    return photo_service("object_detection", tmp_path_factory.mktemp("object_detection"))
