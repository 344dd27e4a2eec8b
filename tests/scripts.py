"""The repository's scripts as modules: they have no `.py` in their names."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

SCRIPTS = Path(__file__).parents[1] / "scripts"

sys.path.append(str(SCRIPTS))  # as Python does for a script: some of them share packages.py


def _load(name: str) -> ModuleType:
    loader = SourceFileLoader(name.replace("-", "_"), str(SCRIPTS / name))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[loader.name] = module  # its own annotations are looked up there
    loader.exec_module(module)
    return module


with_docker = _load("with-docker")
base_image = _load("base-image")
pack_service = _load("pack-service")
packages = importlib.import_module("packages")
