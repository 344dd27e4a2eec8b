"""Commands of clients: find a controller, start services, call them, hold and end their leases."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from node.cli.framework import Command, Duration, Seconds
from node.cli.leases import MIN_PREFIX, LeaseBook
from node.cli.output import already_there, facts, readable, remaining, size, styled, table
from node.cli.placements import instead_of
from node.cli.services import whole_digest
from node.cli.session import Session, command_session
from protocol.identifiers import check_category
from protocol.instances import MAX_ALIVE_S, MAX_LOG_LINES, PHASES, InstanceView, StartAnswer, StartRequest, State
from protocol.problems import (
    BadRequest,
    ConfigError,
    Conflict,
    ControllerUnreachable,
    Forbidden,
    NoMatchingService,
    UnknownInstance,
)

if TYPE_CHECKING:
    from rich.text import Text

    from client import ControllerClient, FoundController

T = TypeVar("T")
INSTANCE_ID = re.compile(r"[0-9a-f]{16}")
STATE_STYLE = {State.RUNNING: "green", State.FAILED: "red", State.STOPPED: "dim", State.UNKNOWN: "yellow"}


@click.command(cls=Command, without=("--controller",))
@click.option("--wait", type=Duration(0.1, 60), default=2.0, show_default=True, help="Seconds to listen.")
@click.option("--mesh", help="Only controllers of this mesh.")
@click.option("--region", help="Only controllers of this region.")
def discover(wait: float, mesh: str | None, region: str | None) -> None:
    """List the controllers that announce themselves on this network."""
    session = command_session()
    found = asyncio.run(_discover(region or session.region, wait, mesh))
    session.output.give(
        [_found_json(c) for c in found],
        table(
            ("REGION", "URL", "MESH", "ROOT", "NODE", "PEERS AT"),
            [(c.region, c.url, c.mesh, c.root[:8], c.node[:8], c.peer_address) for c in found],
        ),
    )


async def _discover(region: str | None, wait_s: float, mesh: str | None) -> list[FoundController]:
    from client import discover as ask

    return await ask(timeout_s=wait_s, mesh=mesh, region=region)


def _found_json(controller: FoundController) -> dict[str, Any]:
    import msgspec

    return {**msgspec.to_builtins(controller), "url": controller.url}


def _start_options(command: Callable[..., None]) -> Callable[..., None]:
    """What `start` and `invoke` share."""
    options = [
        click.option("--category", metavar="PATH", help="Any service in this subtree, such as /image."),
        click.option("--input", "inputs", metavar="TYPE", multiple=True, help="A type that it must take."),
        click.option("--output", "outputs", metavar="TYPE", multiple=True, help="A type that it must give."),
        click.option(
            "--alive-time",
            type=Seconds(0, MAX_ALIVE_S),
            metavar="S",
            help="Seconds it lives unheard; 0: for ever.",
        ),
        click.option("--force-rebuild", is_flag=True, help="Build the image anew."),
        click.option("--wait", type=Duration(1, 3600), default=120.0, metavar="S", help="Seconds to wait (120)."),
        click.option("--param", "parameters", metavar="K=V", multiple=True, help="A parameter of the service."),
        click.option("--variant", help="A variant that the description names."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@click.command(cls=Command, short_help="Start a service, by name or by meaning.")
@click.argument("service", required=False)
@_start_options
def start(service: str | None, **options: Any) -> None:
    """Start SERVICE (an id, a name or a digest), or any service that fits --category, --input and --output."""
    session = command_session()
    request = start_request(service, **options)

    async def work() -> StartAnswer:
        async with session.connected(changing=True) as client:
            return await _start(session, client, request)

    answer = asyncio.run(work())
    session.output.give(
        answer,
        styled(f"{answer.service.id} runs at {answer.url or answer.host}", "bold"),
        facts(
            {
                "instance": answer.instance,
                "start": answer.start,
                "service": f"{answer.service.name} ({answer.service.digest[:19]})",
                "region": answer.region,
                "reached": "through the controller only (`cornerstore invoke` does so)"
                if answer.reach == "relay"
                else "",
                "handed off": " -> ".join([*answer.handoff, answer.region]) if answer.handoff else "",
                "agent": answer.agent[:16],
                "ports": ", ".join(f"{p.container_port}/{p.protocol} -> {p.port}" for p in answer.ports),
                "lease": remaining(answer.lease.expires_at),
                "why": answer.why,
                "instead of": "\n".join(instead_of(answer.decision)),
                "timings": _timings(answer),
            }
        ),
    )


def start_request(
    service: str | None,
    *,
    category: str | None = None,
    inputs: Sequence[str] = (),
    outputs: Sequence[str] = (),
    alive_time: int | None = None,
    force_rebuild: bool = False,
    wait: float = 120.0,
    parameters: Sequence[str] = (),
    variant: str | None = None,
) -> StartRequest:
    """The request that the options describe. Raises click's UsageError where they contradict each other."""
    meant = category is not None or bool(inputs) or bool(outputs)
    if (service is None) != meant:
        raise click.UsageError("Name either a SERVICE or what it shall do: --category, --input, --output.")
    return StartRequest(
        service=service,
        category=None if category is None else check_category(category),
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        alive_time=alive_time,
        force_rebuild=force_rebuild,
        wait_s=wait,
        parameters=dict(_pair(text) for text in parameters),
        variant=variant,
    )


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise click.UsageError(f"--param {text!r}: write it as NAME=VALUE.")
    return name, value


async def _start(session: Session, client: ControllerClient, request: StartRequest) -> StartAnswer:
    """Start with the leases held already: this machine has one on each instance, however often it starts it."""
    import msgspec

    book = LeaseBook(session.data_dir)
    request = msgspec.structs.replace(request, leases=book.tokens(client.url))
    try:
        with session.output.progress() as on_progress:
            try:
                answer = await client.start(request, on_progress)
            except NoMatchingService:
                digest = await whole_digest(client, request.service or "")
                if digest is None:
                    raise
                answer = await client.start(msgspec.structs.replace(request, service=digest), on_progress)
    except asyncio.CancelledError:
        session.output.note(LEFT_ALONE)
        raise
    book.remember(answer, client.url)
    return answer


LEFT_ALONE = "Interrupted. A start that had begun goes on for a minute; `cornerstore ps` shows it."


def _timings(answer: StartAnswer) -> str:
    known = [p for p in PHASES if p in answer.timings_ms] + [p for p in answer.timings_ms if p not in PHASES]
    return ", ".join(f"{phase} {answer.timings_ms[phase]:.0f} ms" for phase in known)


@click.command(cls=Command)
def ps() -> None:
    """List the instances that the region runs."""
    session = command_session()

    async def work() -> list[InstanceView]:
        async with session.connected() as client:
            return await client.instances()

    instances = asyncio.run(work())
    session.output.give(
        instances,
        table(
            ("INSTANCE", "SERVICE", "VARIANT", "STATE", "ADDRESS", "MEMORY", "LIVES", "AGENT", "REASON"),
            [
                (
                    view.instance,
                    f"{view.service.id} ({view.service.name})",
                    view.variant or "",
                    _state(view),
                    view.url or view.host,
                    f"{view.mem} MB",
                    remaining(view.expires_at) if view.state is State.RUNNING else "",
                    view.agent[:8],
                    view.reason,
                )
                for view in instances
            ],
        ),
    )


def _state(view: InstanceView) -> Text:
    return styled(view.state, STATE_STYLE.get(view.state, "cyan"))


def _with_lease(
    instance: str,
    token: str | None,
    ask: Callable[[ControllerClient, str, str | None], Awaitable[T]],
    *,
    changing: bool = False,
) -> tuple[T, bool]:
    """What `ask` gives with the token given or remembered, through the controller that gave the lease; and whether an
    operator's token is at hand."""
    session = command_session()
    name, kept = LeaseBook(session.data_dir).find(instance)
    lease = token or (kept.token if kept else None)

    async def through(url: str | None) -> tuple[T, bool]:
        async with session.connected(url, changing=changing) as client:
            whole = name if kept else await whole_instance_id(client, name)
            return await _asked(session, client, whole, lease, ask), client.operator

    async def work() -> tuple[T, bool]:
        if session.controller or kept is None:
            return await through(session.controller)
        try:
            return await through(kept.controller)
        except ControllerUnreachable:
            # Perhaps it is this machine's own, and has another address by now; the lease works where it is kept, too.
            own = session.local_node
            others = [url for url in (own.rest if own else "", kept.host) if url not in ("", kept.controller)]
            if not others:
                raise
            session.output.note(f"{kept.controller}, which gave the lease, does not answer; asking {others[0]}.")
            return await through(others[0])

    return asyncio.run(work())


def _on_lease(
    instance: str,
    token: str | None,
    verb: Callable[[ControllerClient, str, str | None], Awaitable[InstanceView]],
    *,
    ends: bool = False,
) -> None:
    """Change the instance, and show it. Raises Conflict if that should end it (`ends`) and others hold it, so that it
    goes on."""
    session = command_session()
    book = LeaseBook(session.data_dir)
    view, operator = _with_lease(instance, token, verb, changing=True)
    if view.state is State.REMOVED or (ends and view.state not in ENDED):
        book.forget(view.instance)
    if ends and view.state not in ENDED:
        raise Conflict(f"{view.instance} is still {view.state}: {view.reason}", fix=_STOP_IT[operator])
    session.output.give(
        view,
        styled(f"{view.instance} is {view.state}", "bold"),
        facts(
            {
                "address": view.url,
                "lives": "" if view.state in ENDED else remaining(view.expires_at),
                "reason": view.reason,
            }
        ),
    )


ENDED = frozenset({State.STOPPED, State.FAILED, State.REMOVED})
_STOP_IT = {
    True: "Run the command again: without a lease, you act as the operator of this machine, who may stop it for all.",
    False: "It ends with the last lease. An operator may stop it for all, on the controller's own machine.",
}


async def _asked(
    session: Session,
    client: ControllerClient,
    name: str,
    lease: str | None,
    ask: Callable[[ControllerClient, str, str | None], Awaitable[T]],
) -> T:
    """With the lease; if that is refused where this machine's own controller is asked, as its operator."""
    try:
        return await ask(client, name, lease)
    except Forbidden:
        if lease is None or not client.operator:
            raise
        session.output.note("The lease token is refused; acting as this machine's operator.")
        return await ask(client, name, None)


async def whole_instance_id(client: ControllerClient, text: str) -> str:
    """The id of the one instance that `text` begins; `text` itself if none does, for the controller to judge.

    Raises BadRequest if it fits several, UnknownInstance if it names a service instead.
    """
    if INSTANCE_ID.fullmatch(text):
        return text
    views = await client.instances()
    fitting = [view.instance for view in views if view.instance.startswith(text)] if len(text) >= MIN_PREFIX else []
    if text in {view.instance for view in views} or (not fitting and not _is_service(text, views)):
        return text
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise BadRequest(f"{text!r} fits {len(fitting)} instances: {', '.join(fitting[:4])}", fix="Write more of it.")
    running = [view.instance for view in views if text in (view.service.id, view.service.name)]
    raise UnknownInstance(
        f"{text} is a service, not an instance; its instances are {', '.join(running[:4])}",
        fix="Name an instance; `cornerstore ps` lists them.",
    )


def _is_service(text: str, views: Sequence[InstanceView]) -> bool:
    return any(text in (view.service.id, view.service.name) for view in views)


_token = click.option("--token", envvar="CORNERSTORE_LEASE", help="The lease token (default: the remembered one).")


@click.command(cls=Command)
@click.argument("instance")
@_token
def stop(instance: str, token: str | None) -> None:
    """Stop INSTANCE; it can be restarted at the same address."""
    _on_lease(instance, token, lambda client, name, lease: client.stop(name, lease), ends=True)


@click.command(cls=Command)
@click.argument("instance")
@_token
def restart(instance: str, token: str | None) -> None:
    """Start INSTANCE again after it stopped."""
    _on_lease(instance, token, lambda client, name, lease: client.restart(name, lease))


@click.command(cls=Command)
@click.argument("instance")
@click.option("--alive-time", type=Seconds(1, MAX_ALIVE_S), metavar="S", help="Seconds from now.")
@_token
def alive(instance: str, alive_time: int | None, token: str | None) -> None:
    """Say that INSTANCE is still wanted."""
    _on_lease(instance, token, lambda client, name, lease: client.alive(name, lease, alive_time=alive_time))


@click.command(cls=Command)
@click.argument("instance")
@click.option("--lines", "-n", type=click.IntRange(1, MAX_LOG_LINES), default=100, show_default=True, metavar="N")
@_token
def logs(instance: str, lines: int, token: str | None) -> None:
    """Show the last lines that INSTANCE wrote."""
    output = command_session().output
    log, _ = _with_lease(instance, token, lambda client, name, lease: client.log(name, lease, lines=lines))
    output.give(log, *map(readable, log.lines))
    if not log.lines:
        output.note(f"{log.instance} has written nothing.")


@click.command(cls=Command, name="rm")
@click.argument("instance")
@_token
def remove(instance: str, token: str | None) -> None:
    """Stop INSTANCE and remove what is left of it."""
    _on_lease(instance, token, lambda client, name, lease: client.remove(name, lease), ends=True)


@click.command(cls=Command, short_help="Start a service if need be, and post a file to it.")
@click.argument("service")
@click.argument("path")
@click.argument("file", required=False, type=click.Path(path_type=Path, allow_dash=True))
@_start_options
@click.option("--content-type", default="application/octet-stream", show_default=True, help="Of what is posted.")
@click.option("--accept", default="*/*", show_default=True, help="The media type to get, such as application/json.")
@click.option("--out", "-o", type=click.Path(path_type=Path, dir_okay=False), help="Write the reply here.")
@click.option("--force", is_flag=True, help="Overwrite the file of -o if it is there already.")
def invoke(
    service: str,
    path: str,
    file: Path | None,
    content_type: str,
    accept: str,
    out: Path | None,
    force: bool,
    **options: Any,
) -> None:
    """Start SERVICE if need be and post FILE (- for stdin) to its PATH; without FILE, get PATH.

    With --category, --input or --output, write - for SERVICE.
    """
    from client.invocation import check_path

    session = command_session()
    request = start_request(None if service == "-" else service, **options)
    check_path(path)  # before anything is started
    if out is not None and out.is_file() and not force:
        raise already_there(out)
    body = None if file is None else _read(file)

    async def work() -> tuple[StartAnswer, bytes]:
        async with session.connected(changing=True) as client:
            answer = await _start(session, client, request)
            return answer, await client.invoke(answer, path, body, content_type=content_type, accept=accept)

    answer, reply = asyncio.run(work())
    session.output.note(f"{answer.start} start in {answer.timings_ms.get('total', 0):.0f} ms at {answer.url}")
    if out is not None:
        _write(out, reply, force=force)
    if session.json:
        shown = None if out is not None else reply.decode("utf-8", "replace")
        session.output.give({"start": answer, "bytes": len(reply), "reply": shown})
    elif out is None and sys.stdout.isatty():
        click.echo(as_text(reply), nl=not reply.endswith(b"\n"))
    elif out is None:
        click.echo(reply, nl=False)


def as_text(reply: bytes) -> str:
    """What a terminal can show. Raises BadRequest for anything but text: a photo would garble it."""
    try:
        text = reply.decode()
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise BadRequest(
            f"the service replied {size(len(reply))} that are no text: a terminal cannot show them",
            fix="Write them to a file with -o FILE, or pipe the command's output.",
        )
    return text


def _read(file: Path) -> bytes:
    if str(file) == "-":
        return sys.stdin.buffer.read()
    try:
        return file.read_bytes()
    except OSError as error:
        raise BadRequest(f"{file} cannot be read: {error.strerror}") from None


def _write(out: Path, reply: bytes, *, force: bool) -> None:
    """Not over a file that came into being while the service was called. Devices and pipes are there to be written."""
    over = force or (out.exists() and not out.is_file())
    try:
        with out.open("wb" if over else "xb") as file:
            file.write(reply)
    except FileExistsError:
        raise already_there(out) from None
    except OSError as error:
        raise ConfigError(f"{out} cannot be written: {error.strerror}") from None
