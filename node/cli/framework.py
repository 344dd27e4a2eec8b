"""How every command behaves: common options, lazy loading, and one edge at which problems become messages."""

from __future__ import annotations

import errno
import importlib
import signal
import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import click

from node.cli.session import Session
from protocol.problems import Problem


class Command(click.Command):
    """A command that also takes the common options, so that `cornerstore ps --json` works as people expect."""

    def __init__(self, *args: Any, without: Collection[str] = (), **kwargs: Any) -> None:
        """`without`: common options that mean nothing to this command."""
        super().__init__(*args, **kwargs)
        _add_common_options(self, with_environment=False, without=without)


ASKS = ("--controller", "--region")
"""What only commands that ask a controller take."""


class WholeNumber(click.IntRange):
    name = "whole number"


class Seconds(click.IntRange):
    name = "whole number of seconds"


class Duration(click.FloatRange):
    name = "number of seconds"


class Group(click.Group):
    command_class = Command
    group_class = type


class LazyGroup(Group):
    """The root. `commands_at` maps a command's name to `module:attribute`."""

    def __init__(self, *, commands_at: Mapping[str, str], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._commands_at = commands_at
        self.context_settings = {"help_option_names": ["-h", "--help"]}
        _add_common_options(self, with_environment=True)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self._commands_at)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        location = self._commands_at.get(cmd_name)
        if location is None:
            return None
        module, _, attribute = location.partition(":")
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        session = ctx.ensure_object(Session)
        session.configure_logging()
        try:
            with _ended_as_by_ctrl_c():
                return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except (KeyboardInterrupt, EOFError):
            ctx.exit(130)
        except Exception as error:
            if session.debug or _is_broken_pipe(error):
                raise
            problem = sole_problem(error)
            session.output.fail(problem if problem is not None else _unforeseen(error))
            ctx.exit(1)


@contextmanager
def _ended_as_by_ctrl_c() -> Iterator[None]:
    """A closed terminal and `kill` end a command as Ctrl-C does: it puts away what it began. `nohup` is obeyed."""
    taken = []
    if threading.current_thread() is threading.main_thread():
        taken = [s for s in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(s) is signal.SIG_DFL]
    for each in taken:
        signal.signal(each, _interrupt)
    try:
        yield
    finally:
        for each in taken:
            signal.signal(each, signal.SIG_DFL)


def _interrupt(_: int, __: FrameType | None) -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell has it for what runs in the background
        raise KeyboardInterrupt
    signal.raise_signal(signal.SIGINT)


def sole_problem(error: BaseException) -> Problem | None:
    """The problem that `error` is, or that a TaskGroup wrapped."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, BaseExceptionGroup):
        return next((found for part in error.exceptions if (found := sole_problem(part))), None)
    return None


def _unforeseen(error: Exception) -> Problem:
    return Problem(
        f"{type(error).__name__}: {error}" if str(error) else type(error).__name__,
        fix="This is a fault of Cornerstore. Run the command again with --debug and report what it prints.",
    )


def _is_broken_pipe(error: Exception) -> bool:
    return isinstance(error, OSError) and error.errno == errno.EPIPE


def _add_common_options(command: click.Command, *, with_environment: bool, without: Collection[str] = ()) -> None:
    taken = {*without, *(option for parameter in command.params for option in parameter.opts)}
    command.params += [o for o in _common_options(with_environment) if not taken.intersection(o.opts)]


def _common_options(with_environment: bool) -> list[click.Option]:
    """Made anew for each command: click binds an option to one command. The environment counts once, at the root."""
    return [
        click.Option(
            ["--data-dir"],
            type=click.Path(path_type=Path),
            envvar="CORNERSTORE_DATA_DIR" if with_environment else None,
            expose_value=False,
            callback=_remember,
            help="Where this machine keeps its identity and state (default ~/.local/share/cornerstore).",
        ),
        click.Option(
            ["--controller"],
            metavar="URL",
            envvar="CORNERSTORE_CONTROLLER" if with_environment else None,
            expose_value=False,
            callback=_remember,
            help="The controller to ask (default: this machine's own, else the first that mDNS shows).",
        ),
        click.Option(
            ["--region"],
            expose_value=False,
            callback=_remember,
            help="Ask the controller of this region.",
        ),
        click.Option(
            ["--json", "json"], is_flag=True, expose_value=False, callback=_remember, help="Print JSON for programs."
        ),
        click.Option(
            ["--debug"], is_flag=True, expose_value=False, callback=_remember, help="Log, and print stack traces."
        ),
    ]


def _remember(ctx: click.Context, parameter: click.Parameter, value: Any) -> None:
    session = ctx.ensure_object(Session)
    if value:
        assert parameter.name is not None
        setattr(session, parameter.name, value)
        if parameter.name == "debug":
            session.configure_logging()
