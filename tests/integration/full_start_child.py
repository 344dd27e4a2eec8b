"""A node that was up once is started on a full disk: `python -m tests.integration.full_start_child DATA_DIR`."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path

from bootstrap import create_mesh
from node.ballast import BALLAST_FILE
from node.config import Agent, Docker, Network, NodeConfig
from node.runtime import running_node
from tests.integration.full_disk_child import fill
from tests.waiting import until


async def main(data_dir: Path) -> None:
    create_mesh(data_dir, mesh="test", region="eu", roles=["controller", "agent", "store"], now=time.time())
    config = NodeConfig(
        mesh="test",
        region="eu",
        network=Network(host="127.0.0.1", mdns=False),
        agent=Agent(docker=Docker(enabled=False)),
    )
    async with running_node(config, data_dir):
        await until((data_dir / BALLAST_FILE).exists)
    fill(data_dir.parent / "others")
    async with running_node(config, data_dir) as node:
        assert node.controller is not None
        assert [warning[:8] for warning in node.controller.health().warnings] == ["the disk"]
    print("ok")


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
