"""What people and programs see: tables and colours on a terminal, JSON with --json, problems on stderr."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from protocol.instances import OnProgress, Progress
from protocol.problems import Conflict, Problem

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

PIPED_WIDTH = 240
"""Columns where stdout is no terminal: nothing is folded that a person may copy or `grep`."""

IN_STEPS = frozenset({"build"})
"""Phases whose progress counts steps, not bytes."""


class Output:
    """One command's output. What comes from the network is shown as plain text, whatever control codes it holds."""

    def __init__(self, *, json: bool) -> None:
        self.json = json

    def give(self, value: Any, *shown: RenderableType) -> None:
        """The command's result: `value` for programs, `shown` for people."""
        if self.json:
            import msgspec

            click.echo(msgspec.json.format(msgspec.json.encode(value, enc_hook=str), indent=2))
            return
        from rich.console import Console

        width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else PIPED_WIDTH
        console = Console(highlight=False, markup=False, emoji=False, width=width)
        for part in shown:
            console.print(part, soft_wrap=isinstance(part, str))  # what is copied, such as a token, is one line

    def note(self, message: str) -> None:
        """Something beside the result that a person may want to know; silent with --json."""
        if not self.json:
            click.secho(readable(message), err=True, dim=True)

    def fail(self, problem: Problem) -> None:
        """Cause and fix on stderr; with --json the problem+json object."""
        if self.json:
            import msgspec

            click.echo(msgspec.json.encode(problem.to_dict()), err=True)
            return
        click.echo(f"{click.style('Error:', fg='red', bold=True)} {readable(problem.detail)}", err=True)
        if problem.title != problem.detail:
            click.secho(f"  {problem.title} ({problem.slug})", err=True, dim=True)
        for line in _details(problem.extra):
            click.secho(f"  {readable(line)}", err=True)
        if problem.fix:
            click.echo(f"{click.style('Fix:', fg='green', bold=True)} {readable(problem.fix)}", err=True)

    @contextmanager
    def progress(self) -> Iterator[OnProgress | None]:
        """Live progress on stderr: bars on a terminal, else one line a phase; None with --json."""
        if self.json:
            yield None
        elif sys.stderr.isatty():
            with _bars() as on_progress:
                yield on_progress
        else:
            yield _lines()


@contextmanager
def _bars() -> Iterator[OnProgress]:
    from rich.console import Console
    from rich.progress import BarColumn, ProgressColumn, SpinnerColumn, Task, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars
    from rich.text import Text

    class Rate(ProgressColumn):
        """Bytes a second, where bytes are counted."""

        def render(self, task: Task) -> Text:
            speed = task.finished_speed or task.speed
            return Text(f"{size(int(speed))}/s" if speed and task.total and task.fields["bytes"] else "")

    tasks: dict[str, Any] = {}
    with Bars(
        SpinnerColumn(),
        TextColumn("{task.fields[phase]:8}"),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[amount]}"),
        Rate(),
        TimeElapsedColumn(),
        TextColumn("{task.description}", markup=False),
        console=Console(stderr=True),
        transient=True,
    ) as bars:

        def show(step: Progress) -> None:
            if step.phase not in tasks:
                for earlier in tasks.values():
                    bars.stop_task(earlier)
                tasks[step.phase] = bars.add_task(
                    "", total=None, phase=readable(step.phase)[:8], amount="", bytes=step.phase not in IN_STEPS
                )
            bars.update(
                tasks[step.phase],
                total=step.total or None,
                completed=step.done,
                amount=amount(step),
                description=readable(doing(step))[:60],
            )

        yield show


def doing(step: Progress) -> str:
    """What is done, and where, if another region does it."""
    return f"{step.region}: {step.message}" if step.region else step.message


def amount(step: Progress) -> str:
    """How far a step of known length is, in bytes or in steps."""
    if not step.total:
        return ""
    if step.phase in IN_STEPS:
        return f"{step.done} of {step.total}"
    return f"{size(step.done)} of {size(step.total)}"


def _lines() -> OnProgress:
    last = ""

    def show(step: Progress) -> None:
        nonlocal last
        if step.phase != last:
            last = step.phase
            click.echo(readable(f"{step.phase:8} {step.message}").rstrip(), err=True)

    return show


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> RenderableType:
    """A table; with no rows, a line that says so. Cells are plain text."""
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        grid.add_column(column, overflow="fold")
    for row in rows:
        grid.add_row(*(cell if isinstance(cell, Text) else Text(readable(str(cell))) for cell in row))
    return grid if grid.row_count else Text("nothing to show", style="dim")


def facts(pairs: Mapping[str, object]) -> RenderableType:
    """Names and values, one a line; empty values are left out."""
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in pairs.items():
        if value not in (None, "", ()):
            grid.add_row(Text(name, style="bold"), Text(readable(str(value))))
    return grid


def styled(text: str, style: str) -> Text:
    from rich.text import Text

    return Text(readable(text), style=style)


def already_there(file: Path) -> Conflict:
    """A file that is not written over unless the caller says so."""
    return Conflict(f"{file} is there already", fix="Name another file with -o, or add --force.")


def readable(text: str) -> str:
    """Text from the network without control codes, which could rewrite a terminal; line breaks stay."""
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)


def short_digest(digest: str) -> str:
    return digest[:19]


def size(bytes_: int) -> str:
    value = float(bytes_)
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.3g} {unit}" if unit != "B" else f"{bytes_} B"
        value /= 1000
    return f"{value:.3g} GB"


def remaining(expires_at: float | None) -> str:
    """How long until a Unix time, as a person says it."""
    if expires_at is None:
        return "until stopped"
    seconds = expires_at - time.time()
    return lasting(seconds) if round(seconds) > 0 else "over"


def lasting(duration_s: float) -> str:
    """A duration as a person says it, at least a second."""
    seconds = max(1, round(duration_s))
    if seconds < 120:
        return f"{seconds} s"
    if seconds < 7200:
        return f"{round(seconds / 60)} min"
    return f"{round(seconds / 3600)} h" if seconds < 172_800 else f"{round(seconds / 86_400)} days"


def _cell(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _details(extra: Mapping[str, Any]) -> Iterator[str]:
    """The further members of a problem, in words, but for those that its fix says."""
    for key, value in extra.items():
        if key in ("near", "nearest"):
            continue
        if key == "retry_after" and isinstance(value, int | float):
            yield f"Try again in {lasting(value)}."
        elif isinstance(value, Mapping):
            yield from (f"{name}: {reason}" for name, reason in value.items())
        elif isinstance(value, list | tuple) and value:
            yield f"{key}:"
            for item in value:
                yield "  " + (", ".join(map(_cell, item.values())) if isinstance(item, Mapping) else str(item))
        elif value not in (None, "", [], ()):
            yield f"{key}: {value}"
