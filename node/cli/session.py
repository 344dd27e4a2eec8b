"""What one run of the command line knows: its settings, where it prints, and which controller it asks."""

from __future__ import annotations

import logging
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import click

from node.cli.output import Output
from node.config import DEFAULT_DATA_DIR, NodeConfig
from node.config import FILE_NAME as CONFIG_FILE
from node.running import Running, running_node_of
from protocol.problems import ControllerUnreachable

if TYPE_CHECKING:
    from client import ControllerClient

FIND_TIMEOUT_S = 5.0


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
    async def connected(self, url: str | None = None) -> AsyncIterator[ControllerClient]:
        """A client of `url`, else of --controller, else of this machine's own controller, else of the first found.

        The operator's token goes only to this machine's own controller.
        """
        from client import ControllerClient
        from client.rest import base_url

        chosen = base_url(url or self.controller or self._own_controller() or await self._find())
        own = self.local_node
        token = self._operator_token() if own is not None and own.rest and base_url(own.rest) == chosen else None
        async with ControllerClient(chosen, token=token) as client:
            yield client

    def _own_controller(self) -> str:
        local = self.local_node
        return local.rest if local is not None and self.region is None else ""

    async def _find(self) -> str:
        from client import discover

        mesh = self._mesh()
        found = await discover(timeout_s=FIND_TIMEOUT_S, mesh=mesh, region=self.region, enough=1)
        if not found:
            where = "".join(f" of {kind} {name}" for kind, name in (("mesh", mesh), ("region", self.region)) if name)
            raise ControllerUnreachable(
                f"no controller{where} announced itself on this network within {FIND_TIMEOUT_S:g} s",
                fix="Start one with `cornerstore up`, or name one with --controller URL.",
            )
        return found[0].url

    def _mesh(self) -> str | None:
        """The mesh that this machine belongs to, if it does: others on the same network are not meant."""
        return NodeConfig.load(self.data_dir).mesh if (self.data_dir / CONFIG_FILE).exists() else None

    def _operator_token(self) -> str | None:
        try:
            return (self.data_dir / "identity" / "operator.token").read_text().strip() or None
        except OSError:
            return None


def command_session() -> Session:
    """The settings of the command that runs now."""
    session = click.get_current_context().find_object(Session)
    assert session is not None
    return session
