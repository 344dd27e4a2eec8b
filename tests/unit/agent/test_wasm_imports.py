"""The process that runs strangers' modules imports what it needs and nothing else of the node."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys
from types import ModuleType

import pytest

import agent
import dht

FOREIGN = ("docker", "requests", "csar", "zeroconf", "sqlite3", "agent.agent", "agent.journal", "dht.exchange")


def test_the_wasm_host_imports_neither_docker_nor_mesh_nor_archives() -> None:
    program = f"import sys, agent.wasm_host; print([name for name in {FOREIGN!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("package", [agent, dht], ids=["agent", "dht"])
def test_a_package_s_names_are_themselves_whatever_was_imported_before(package: ModuleType) -> None:
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        if module.name != "agent.wasm_host":  # it is a program
            importlib.import_module(module.name)
    for name in package.__all__:
        assert not isinstance(getattr(package, name), ModuleType), "a module of the package has the same name"
    with pytest.raises(AttributeError):
        _ = package.absent
