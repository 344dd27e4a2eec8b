"""One running site with the word count published: what the start benchmarks measure."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from msgspec.structs import replace

from client.controller import ControllerClient
from node.config import NodeConfig
from node.local_mesh import Site, up

SERVICES = Path(__file__).resolve().parent.parent / "services"
WORD_COUNT = SERVICES / "word_count"
WORD_COUNT_MODULE = SERVICES / "word_count_wasm"
"""`wc02`; needs no engine."""


@asynccontextmanager
async def one_site(
    service: Path = WORD_COUNT, *, pause_after_s: float = 0.0
) -> AsyncIterator[tuple[Site, ControllerClient]]:
    """A mesh of one site on loopback, `service` published, nothing built yet. `pause_after_s`: see the agent's."""
    with tempfile.TemporaryDirectory(prefix="cornerstore-bench-") as folder:
        site = Site("bench", "bench", Path(folder) / "site")
        await site.found("bench")
        config = NodeConfig.load(site.data_dir)
        agent = replace(config.agent, pause_after_s=pause_after_s)
        controller = replace(config.controller, starts_per_client_s=0.0)  # one client asks as fast as it can
        replace(config, agent=agent, controller=controller).save(site.data_dir)
        async with up(site), ControllerClient(site.running.rest) as client:
            await site.cornerstore("--controller", site.running.rest, "publish", str(service))
            yield site, client
