"""Meshes of real nodes on loopback, through the commands that people type."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from client.controller import ControllerClient
from node.local_mesh import Site, up
from protocol.problems import Problem

SERVICES = Path(__file__).parents[1] / "services"
WORD_COUNT = SERVICES / "word_count"


@asynccontextmanager
async def running_sites(first: Site, *others: Site) -> AsyncIterator[None]:
    """`first` founds the mesh, the others join it with its invitations; all are up for the time of the block."""
    async with AsyncExitStack() as stack:
        await first.found("test")
        await stack.enter_async_context(up(first))
        for site in others:
            await site.join(await first.invite(site))
            await stack.enter_async_context(up(site))
        yield


async def ask(site: Site, *arguments: str) -> Any:
    """What a command of the site's own machine says in JSON. A running controller of its own is asked by itself."""
    return json.loads(await site.cornerstore("--json", *arguments))


async def refusal(site: Site, *arguments: str) -> dict[str, Any]:
    """The problem, as JSON, with which a command fails."""
    try:
        await site.cornerstore("--json", *arguments)
    except Problem as problem:
        text = problem.detail
        found: dict[str, Any] = json.loads(text[text.index("{") :])
        return found
    raise AssertionError(f"{' '.join(arguments)} did not fail")


def slug(problem: dict[str, Any]) -> str:
    return str(problem["type"]).rpartition("/")[2]


async def have_agent(client: ControllerClient) -> bool:
    return bool(await client.agents())


def service_folder(folder: Path, *, name: str, dockerfile: str, mem: int = 16, extra: str = "") -> Path:
    """The source of a CSAR in `folder/name`: an id of that name, in /test, port 8080."""
    source = folder / name
    (source / "context").mkdir(parents=True)
    (source / "context" / "Dockerfile").write_text(dockerfile)
    (source / f"{name}.yaml").write_text(
        "tosca_definitions_version: tosca_simple_profile_for_microservices_1_0_0\n"
        "topology_template:\n  node_templates:\n    service:\n"
        "      type: tosca.nodes.microservices.docker_container\n"
        "      properties:\n"
        f"        id: {name}\n        name: {name}\n        category: /test\n        container_port: 8080\n"
        f"        mem_requirement: {mem}\n        directory: context\n{extra}"
    )
    return source
