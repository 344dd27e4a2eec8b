"""The process that runs strangers' modules imports what it needs and nothing else of the node."""

from __future__ import annotations

import subprocess
import sys

FOREIGN = ("docker", "requests", "csar", "zeroconf", "sqlite3", "agent.agent", "agent.journal", "dht.swarm.exchange")


def test_the_wasm_host_imports_neither_docker_nor_mesh_nor_archives() -> None:
    program = f"import sys, agent.wasm.host; print([name for name in {FOREIGN!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
