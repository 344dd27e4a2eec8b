"""The tree of regions, as a person sees it."""

from __future__ import annotations

import io
import time
from typing import Any

from rich.console import Console

from node.cli.region_tree import region_tree
from protocol.instances import AgentView, InstanceView, RegionView, ServiceRef, State

REF = ServiceRef("sha256:" + "a" * 64, "wc01", "wordcount")


def a_region(path: str, relation: str, *, agents: int = 1, node: str = "c" * 40, **live: Any) -> RegionView:
    return RegionView(
        region=path,
        node=node,
        addresses=(),
        relation=relation,
        agents=agents,
        memory_total=1000,
        memory_free=400,
        age_s=1.0,
        **live,
    )


def an_instance(name: str, **changes: object) -> InstanceView:
    given = {"region": "eu/de", "agent": "a" * 40, "state": State.RUNNING, "host": "10.0.0.5", "mem": 50, **changes}
    return InstanceView(instance=name, service=REF, **given)  # type: ignore[arg-type]


def drawn(*args: object) -> list[str]:
    shown = io.StringIO()
    Console(width=120, file=shown, markup=False).print(region_tree(*args))  # type: ignore[arg-type]
    return [line.rstrip() for line in shown.getvalue().splitlines()]


def test_regions_hang_below_their_parents_and_instances_on_their_agents() -> None:
    agent = AgentView(
        node="a" * 40, host="10.0.0.5", runtimes=("docker",), memory_total=500, memory_free=450, instances=1, load=0.5
    )
    regions = [
        a_region("eu/de", "self"),
        a_region("eu/de/mainz", "child", agents=2, live=True, rtt_ms=12.5, queue=3),
        a_region("eu/fr", "sibling", node="d" * 40),
        a_region("eu/fr", "sibling", node="e" * 40),
    ]
    instances = [
        an_instance("1", url="http://10.0.0.5:4000", expires_at=time.time() + 30.4),
        an_instance("2", state=State.FAILED, reason="exited 1"),
        an_instance("3", region="eu/fr", agent="", state=State.UNKNOWN),
    ]
    assert drawn("home", regions, [agent], instances) == [
        "mesh home",
        "└── eu",
        "    ├── de (here): 1 agent, 400 of 1000 MB free",
        "    │   ├── agent aaaaaaaa at 10.0.0.5: docker, 450 of 500 MB free, load 0.5",
        "    │   │   ├── wc01 running at http://10.0.0.5:4000, 50 MB, lives 30 s",
        "    │   │   └── wc01 failed (exited 1), 50 MB",
        "    │   └── mainz: 2 agents, 400 of 1000 MB free, heard 1 s ago, 12.5 ms away, 3 requests under way",
        "    └── fr: 2 agents, 2 controllers, 800 of 2000 MB free, silent, recorded 1 s ago",
        "        └── wc01 unknown, 50 MB",
    ]


def test_what_comes_from_the_network_is_no_markup_and_no_control_code() -> None:
    sly = AgentView(
        node="a" * 40, host="[red]x\x1b[2J", runtimes=(), memory_total=1, memory_free=1, instances=0, load=0
    )
    shown = drawn("home", [a_region("eu/de", "self")], [sly], [an_instance("1", reason="[bold]no")])
    assert any("at [red]x\N{REPLACEMENT CHARACTER}[2J: no runtime" in line for line in shown)
    assert any("running ([bold]no)" in line for line in shown)
