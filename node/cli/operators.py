"""Commands of operators: found and join a mesh, run a node, look at the region."""

from __future__ import annotations

import asyncio
import re
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from node.cli.framework import ASKS, Command, Group, WholeNumber
from node.cli.output import facts, lasting, styled, table
from node.cli.session import Session, command_session
from protocol.decisions import PlacementView
from protocol.identifiers import check_region
from protocol.instances import AgentView, Health, InstanceView, RegionView
from protocol.peers import ROLES, Role

if TYPE_CHECKING:
    from bootstrap import JoinResult
    from node.config import NodeConfig

_DURATION = re.compile(r"(\d+(?:\.\d+)?)([smhd]?)")
_UNIT_S = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}
_role = click.Choice(ROLES)


def read_duration(ctx: click.Context, parameter: click.Parameter, text: str) -> float:
    """`90`, `90s`, `15m`, `1h`, `2d`: seconds."""
    match = _DURATION.fullmatch(text)
    if match is None:
        raise click.BadParameter(f"{text!r} is not a duration; write 90s, 15m, 1h or 2d.")
    return float(match[1]) * _UNIT_S[match[2]]


@click.group(cls=Group)
def bootstrap() -> None:
    """Found a mesh, invite machines, join."""


@bootstrap.command(without=ASKS)
@click.option("--mesh", required=True, help="Name of the new mesh: lower-case letters, digits, dashes.")
@click.option("--region", required=True, help="Region of this site, such as eu/de/darmstadt.")
@click.option("--role", "roles", multiple=True, type=_role, help="Default: all of controller, agent, store.")
@click.option("--site", help="Name of this site (default: the host name).")
def init(mesh: str, region: str, roles: tuple[Role, ...], site: str | None) -> None:
    """Make a new mesh with this machine as its first site."""
    from bootstrap import create_mesh

    session = command_session()
    identity = create_mesh(session.data_dir, mesh=mesh, region=region, roles=roles or ROLES, now=time.time())
    config = write_config(session.data_dir, mesh=mesh, region=region, roles=identity.roles, site=site)
    session.output.give(
        {"mesh": mesh, "region": region, "roles": config.roles, "node": identity.node, "data_dir": session.data_dir},
        styled(f"Mesh {mesh} begins here, in region {region}.", "bold"),
        facts({"node": identity.node, "roles": ", ".join(config.roles), "files": session.data_dir}),
        styled("Next: cornerstore up, then cornerstore bootstrap invite --region REGION for each further site.", "dim"),
    )


@bootstrap.command(without=ASKS)
@click.option("--region", help="Region of the machine that joins (default: this one's).")
@click.option("--role", "roles", multiple=True, type=_role, help="Roles that it may play (default: all).")
@click.option(
    "--ttl",
    default="1h",
    show_default=True,
    metavar="DURATION",
    callback=read_duration,
    help="How long the invitation is valid.",
)
@click.option("--uses", type=WholeNumber(1), default=1, show_default=True, help="How many machines may join.")
@click.option("--address", "addresses", multiple=True, metavar="HOST:PORT", help="Where the joiner reaches this node.")
def invite(region: str | None, roles: tuple[Role, ...], ttl: float, uses: int, addresses: tuple[str, ...]) -> None:
    """Print a token with which another machine joins this mesh."""
    from bootstrap import create_invite
    from node.config import NodeConfig

    session = command_session()
    config = NodeConfig.load(session.data_dir)
    wanted = region or config.region
    reached_at = addresses or _own_addresses(session, config)
    invitation = create_invite(
        session.data_dir,
        region=check_region(wanted),
        roles=roles or ROLES,
        ttl_s=ttl,
        uses=uses,
        addresses=reached_at,
        now=time.time(),
    )
    session.output.note(f"On the new machine: cornerstore bootstrap join TOKEN. Valid for {lasting(ttl)}.")
    if session.local_node is None:
        session.output.note("No node runs here: start it with `cornerstore up` before the other machine joins.")
    session.output.give(
        {"token": invitation.token, "expires": invitation.expires, "region": wanted, "addresses": reached_at},
        invitation.token,
    )


def _own_addresses(session: Session, config: NodeConfig) -> tuple[str, ...]:
    """Where this node's peers reach it: as it runs now, else as it will once it is up."""
    local = session.local_node
    if local is not None:
        return (local.peer, *config.network.advertise)
    from client.lan import lan_address
    from node.config import DEFAULT_PEER_PORT

    host = config.network.host or lan_address()
    return (f"{host}:{config.network.peer_port or DEFAULT_PEER_PORT}", *config.network.advertise)


@bootstrap.command(without=ASKS)
@click.argument("token")
@click.option("--role", "roles", multiple=True, type=_role, help="Default: all that the invitation allows.")
@click.option("--site", help="Name of this site (default: the host name).")
def join(token: str, roles: tuple[Role, ...], site: str | None) -> None:
    """Join the mesh that TOKEN invites to."""
    session = command_session()
    result: JoinResult = asyncio.run(_join(session, token, roles))
    config = write_config(
        session.data_dir,
        mesh=result.mesh,
        region=result.region,
        roles=result.roles,
        site=site,
        bootstrap=result.bootstrap,
    )
    session.output.give(
        result,
        styled(f"This machine belongs to mesh {result.mesh}, region {result.region}.", "bold"),
        facts({"node": result.node, "roles": ", ".join(config.roles), "files": session.data_dir}),
        styled("Next: cornerstore up", "dim"),
    )


async def _join(session: Session, token: str, roles: Sequence[Role]) -> JoinResult:
    from bootstrap import join as join_mesh

    return await join_mesh(token, data_dir=session.data_dir, roles=roles or None)


def write_config(
    data_dir: Path,
    *,
    mesh: str,
    region: str,
    roles: Sequence[Role],
    site: str | None = None,
    bootstrap: Sequence[str] = (),
) -> NodeConfig:
    """config.toml for a new member. What an operator wrote there before, such as ports, stays."""
    import msgspec

    from node.config import FILE_NAME, Mesh, NodeConfig

    membership = {"mesh": mesh, "region": region, "roles": tuple(roles), "dht": Mesh(bootstrap=tuple(bootstrap))}
    if (data_dir / FILE_NAME).exists():
        config = msgspec.structs.replace(NodeConfig.load(data_dir), **membership)
        if site is not None:
            config = msgspec.structs.replace(config, site=site)
    else:
        config = NodeConfig(**membership, site=site or socket.gethostname().partition(".")[0])  # type: ignore[arg-type]
    config.save(data_dir)
    return config


@click.command(cls=Command, without=ASKS)
def up() -> None:
    """Run this machine's node until Ctrl-C."""
    from node.cli.serving import serve_node

    serve_node(command_session())


@click.command(cls=Command, without=ASKS)
@click.option("--stay", is_flag=True, help="Leave the mesh running until Ctrl-C.")
def demo(stay: bool) -> None:
    """Run three sites on this machine and tell what happens."""
    from node.demo import demo as tell_story

    asyncio.run(tell_story(stay=stay))


@click.command(cls=Command, short_help="Show this machine's node, and the mesh as a tree.")
@click.option("--why", is_flag=True, help="Also why the latest requests were placed where they were, or refused.")
@click.option("--would", metavar="SERVICE", help="Also where SERVICE would be placed now; starts nothing.")
def status(why: bool, would: str | None) -> None:
    """Show this machine's node, and the tree of regions with room, agents and what runs here."""
    from node.cli.placements import placement_lines
    from node.cli.region_tree import region_tree

    session = command_session()
    local = session.local_node
    url, health, agents_, instances, regions_, placements = asyncio.run(_status(session, why, would))
    states: dict[str, int] = {}
    for view in instances:
        states[view.state] = states.get(view.state, 0) + 1
    session.output.give(
        {
            "node": local,
            "controller": url,
            "health": health,
            "agents": agents_,
            "instances": states,
            "regions": regions_,
            **({"placements": placements} if why or would is not None else {}),
        },
        facts(
            {
                "this machine": f"node {local.node[:8]}, process {local.pid}" if local else "no node runs here",
                "region": health.region,
                "controller": url,
                "health": health.status,
                "instances": ", ".join(f"{count} {state}" for state, count in states.items()) or "none",
            }
        ),
        *(styled(warning, "yellow") for warning in health.warnings),
        region_tree(health.mesh, regions_, agents_, instances),
        *placement_lines(placements, time.time()),
        *([styled("No request for a service since the controller came up.", "dim")] if why and not placements else []),
    )


async def _status(
    session: Session, why: bool, would: str | None
) -> tuple[str, Health, list[AgentView], list[InstanceView], list[RegionView], list[PlacementView]]:
    async with session.connected() as client:
        health = await client.health()
        agents_, instances, regions_ = await asyncio.gather(client.agents(), client.instances(), client.regions())
        placements = [await client.would_be_placed(would)] if would is not None else []
        placements += await client.placements() if why else []
        return client.url, health, agents_, instances, regions_, placements


@click.command(cls=Command)
def agents() -> None:
    """List the agents of the region."""
    session = command_session()

    async def work() -> list[AgentView]:
        async with session.connected() as client:
            return await client.agents()

    found = asyncio.run(work())
    session.output.give(
        found,
        table(
            ("NODE", "HOST", "RUNTIMES", "FREE", "TOTAL", "INSTANCES", "LABELS", "HEARD"),
            [
                (
                    a.node[:8],
                    a.host,
                    ", ".join(a.runtimes),
                    f"{a.memory_free} MB",
                    f"{a.memory_total} MB",
                    a.instances,
                    ", ".join(f"{k}={v}" for k, v in a.labels.items()),
                    f"{a.age_s:.0f} s ago",
                )
                for a in found
            ],
        ),
    )


@click.command(cls=Command, short_help="List the regions known here, and their room.")
def regions() -> None:
    """List the regions that the controller knows, and what they could still host."""
    session = command_session()

    async def work() -> list[RegionView]:
        async with session.connected() as client:
            return await client.regions()

    found = asyncio.run(work())
    session.output.give(
        found,
        table(
            ("REGION", "RELATION", "NODE", "AGENTS", "FREE", "TOTAL", "HEARD", "RTT", "AT"),
            [
                (
                    r.region,
                    r.relation,
                    r.node[:8],
                    r.agents,
                    f"{r.memory_free} MB",
                    f"{r.memory_total} MB",
                    f"{r.age_s:.0f} s ago" if r.live else f"no, recorded {r.age_s:.0f} s ago",
                    "" if r.rtt_ms is None else f"{r.rtt_ms:g} ms",
                    ", ".join(r.addresses),
                )
                for r in found
            ],
        ),
    )
