"""What one run of the command line knows: its settings, where it prints, and which controller it asks."""

from __future__ import annotations

import logging
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import click

from node.cli.output import Output
from node.config import DEFAULT_DATA_DIR, NodeConfig
from node.config import FILE_NAME as CONFIG_FILE
from node.running import Running, running_node_of
from protocol.problems import Conflict, ControllerUnreachable

if TYPE_CHECKING:
    from client import ControllerClient, FoundController

FIND_TIMEOUT_S = 5.0
SETTLE_S = 1.5
"""How long a command that changes something listens for further meshes, once one was heard."""


@dataclass
class Session:
    data_dir: Path = field(default_factory=DEFAULT_DATA_DIR.expanduser)
    controller: str | None = None
    region: str | None = None
    json: bool = False
    debug: bool = False

    @property
    def output(self) -> Output:
        return Output(json=self.json)

    def configure_logging(self, level: int | None = None) -> None:
        """Logs go to stderr; only `up` and --debug want them."""
        import structlog

        if level is None:
            level = logging.DEBUG if self.debug else logging.CRITICAL
        structlog.configure(
            processors=[
                structlog.contextvars.merge_contextvars,
                structlog.processors.add_log_level,
                structlog.processors.TimeStamper(fmt="%Y-%m-%d %H:%M:%S", utc=False),
                # Plain traces: the default ones print local variables, and with them keys and tokens.
                structlog.dev.ConsoleRenderer(
                    colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
                ),
            ],
            wrapper_class=structlog.make_filtering_bound_logger(level),
            logger_factory=structlog.PrintLoggerFactory(sys.stderr),
            cache_logger_on_first_use=False,
        )

    @property
    def local_node(self) -> Running | None:
        """The node that runs from the same data directory, if one does."""
        return running_node_of(self.data_dir)

    @asynccontextmanager
    async def connected(self, url: str | None = None, *, changing: bool = False) -> AsyncIterator[ControllerClient]:
        """A client of `url`, else of --controller, else of this machine's own controller, else of the first found.

        The operator's token goes only to this machine's own controller. `changing`: the command changes something, so
        that it must be clear in which mesh.
        """
        from client import ControllerClient
        from client.rest import base_url

        known = url or self.controller or self._own_controller()
        chosen = base_url(known) if known else await self._find(changing=changing)
        own = self.local_node
        token = self._operator_token() if own is not None and own.rest and base_url(own.rest) == chosen else None
        async with ControllerClient(chosen, token=token) as client:
            yield client

    def _own_controller(self) -> str:
        local = self.local_node
        return local.rest if local is not None and self.region is None else ""

    async def _find(self, *, changing: bool) -> str:
        """The URL of a controller that announces itself, told on stderr: nobody named it.

        A member of a mesh asks its own only. Raises ControllerUnreachable if there is none, Conflict if something shall
        change and several meshes could be meant.
        """
        from bootstrap import mesh_mark, mesh_root
        from client import Browser

        root = mesh_root(self.data_dir)
        config = NodeConfig.load(self.data_dir) if (self.data_dir / CONFIG_FILE).exists() else None
        mesh = config.mesh if config else None
        asleep = config is not None and "controller" in config.roles and self.local_node is None
        if asleep:
            self.output.note("This machine's own controller is not running; `cornerstore up` starts it.")
        mark = mesh_mark(root) if root else None
        async with Browser(mesh=mesh, root=mark, region=self.region) as browser:
            found = await browser.wait_until(bool, timeout_s=FIND_TIMEOUT_S)
            if found and changing and mark is None:
                found = await browser.wait_until(lambda _: False, timeout_s=SETTLE_S)
        if not found:
            where = "".join(f" of {kind} {name}" for kind, name in (("mesh", mesh), ("region", self.region)) if name)
            raise ControllerUnreachable(
                f"no controller{where} announced itself on this network within {FIND_TIMEOUT_S:g} s"
                + ("; this machine's own does not run" if asleep else ""),
                fix="Start one with `cornerstore up`, or name one with --controller URL.",
            )
        if changing:
            check_one_mesh(found)
        chosen = found[0]
        self.output.note(
            f"Asking {chosen.url}, which mDNS shows: region {chosen.region} of mesh {chosen.mesh} ({chosen.root[:8]})"
        )
        return chosen.url

    def _operator_token(self) -> str | None:
        try:
            return (self.data_dir / "identity" / "operator.token").read_text().strip() or None
        except OSError:
            return None


def check_one_mesh(found: Sequence[FoundController]) -> None:
    """Raises Conflict if the controllers are of several meshes: a change must not go to a stranger's by chance."""
    first_of = {controller.root: controller for controller in reversed(found)}
    if len(first_of) > 1:
        raise Conflict(
            f"{len(first_of)} meshes are on this network and this data directory belongs to none of them",
            fix="Name the controller with --controller URL, or the region with --region if only one mesh has it.",
            controllers=[{"url": c.url, "region": c.region, "mesh": f"{c.mesh} ({c.root[:8]})"} for c in found],
        )


def command_session() -> Session:
    """The settings of the command that runs now."""
    session = click.get_current_context().find_object(Session)
    assert session is not None
    return session
