"""The regions of a mesh as a tree: who has room, and what runs here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from node.cli.output import readable, remaining, styled
from protocol.identifiers import parent_region
from protocol.instances import AgentView, InstanceView, RegionView, State

if TYPE_CHECKING:
    from rich.text import Text
    from rich.tree import Tree

_STYLE: Mapping[State, str] = {State.RUNNING: "green", State.FAILED: "red", State.UNKNOWN: "yellow"}


def region_tree(
    mesh: str, regions: Sequence[RegionView], agents: Sequence[AgentView], instances: Sequence[InstanceView]
) -> Tree:
    """`agents` are of the region whose relation is `self`. An instance stands below its agent, or else its region."""
    from rich.tree import Tree

    tree = Tree(styled(f"mesh {mesh}", "bold"), guide_style="dim")
    controllers: dict[str, list[RegionView]] = {}
    for view in regions:
        controllers.setdefault(view.region, []).append(view)
    branches = {"": tree}
    for region in sorted({*controllers, *(a for path in controllers for a in _ancestors(path))}):
        known = controllers.get(region, [])
        branches[region] = branches[parent_region(region)].add(_region_line(region, known))
        if any(view.relation == "self" for view in known):
            branches |= {agent.node: branches[region].add(_agent_line(agent)) for agent in agents}
    for instance in instances:
        branch = branches.get(instance.agent or instance.region) or branches.get(instance.region)
        if branch is not None:
            branch.add(_instance_line(instance))
    return tree


def _ancestors(region: str) -> list[str]:
    found = []
    while region := parent_region(region):
        found.append(region)
    return found


def _region_line(region: str, controllers: Sequence[RegionView]) -> Text:
    name = region.rpartition("/")[2]
    if not controllers:
        return styled(name, "dim")
    agents = sum(view.agents for view in controllers)
    free, total = sum(v.memory_free for v in controllers), sum(v.memory_total for v in controllers)
    here = " (here)" if any(view.relation == "self" for view in controllers) else ""
    count = "1 agent" if agents == 1 else f"{agents} agents"
    several = f", {len(controllers)} controllers" if len(controllers) > 1 else ""
    line = styled(name, "bold").append(f"{here}: {count}{several}, {free} of {total} MB free", "not bold")
    youngest = min(controllers, key=lambda view: (not view.live, view.age_s))
    return line if here else line.append(f", {_heard(youngest)}", "not bold")


def _heard(view: RegionView) -> str:
    """How far this is to be believed: a record may be of a controller that is dead by now."""
    if not view.live:
        return f"silent, recorded {view.age_s:.0f} s ago"
    queue = f", {view.queue} requests under way" if view.queue else ""
    away = f", {view.rtt_ms:g} ms away" if view.rtt_ms is not None else ""
    return f"heard {view.age_s:.0f} s ago{away}{queue}"


def _agent_line(agent: AgentView) -> Text:
    has = ", ".join(agent.runtimes) or "no runtime"
    memory = f"{agent.memory_free} of {agent.memory_total} MB free"
    away = f", {agent.rtt_ms:.2g} ms away" if agent.rtt_ms is not None else ""
    return styled(f"agent {agent.node[:8]} at {agent.host}: {has}, {memory}, load {agent.load:g}{away}", "")


def _instance_line(view: InstanceView) -> Text:
    why = f" ({view.reason})" if view.reason else ""
    at = f" at {view.url}" if view.url else ""
    lives = f", lives {remaining(view.expires_at)}" if view.state in (State.RUNNING, State.PAUSED) else ""
    line = styled(f"{view.service.id} ", "").append(view.state, _STYLE.get(view.state, "cyan"))
    return line.append(readable(f"{why}{at}, {view.mem} MB{lives}"))
