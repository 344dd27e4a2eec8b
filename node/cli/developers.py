"""Commands of developers: make archives, publish them, find and fetch what others published."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from node.cli.framework import ASKS, Command
from node.cli.output import already_there, facts, remaining, short_digest, size, styled, table
from node.cli.services import candidates, whole_digest
from node.cli.session import Session, command_session
from protocol.identifiers import DIGEST_PREFIX, check_category, check_service_id, is_digest
from protocol.instances import ServiceView, VariantView
from protocol.problems import AmbiguousService

if TYPE_CHECKING:
    from rich.console import RenderableType

    from client import ControllerClient, Listing
    from protocol.records import Signed
    from protocol.service import ServiceDescriptor

SUFFIX = ".csar"
SHOWN = 100
"""Lines of a search, unless a person asks for another number."""
MAX_COMPARED = 1000
"""Published services among which names like a misspelt one are looked for."""
_existing = click.Path(exists=True, path_type=Path)


@click.command(cls=Command, without=ASKS)
@click.argument("directory", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--out", "-o", type=click.Path(path_type=Path, dir_okay=False), help="Default: the folder's name + .csar")
@click.option(
    "--over",
    type=click.Path(exists=True, path_type=Path, dir_okay=False),
    help="Leave out of image archives the layers of this one (docker save BASE), which agents must have.",
)
def pack(directory: Path, out: Path | None, over: Path | None) -> None:
    """Make a CSAR of DIRECTORY. The same files give the same digest."""
    from csar import pack as pack_archive
    from node.cli.publisher import digest_and_size

    session = command_session()
    target = out or Path(directory.resolve().name + SUFFIX)
    descriptor = pack_archive(directory, target, over=over)
    digest, bytes_ = digest_and_size(target)
    session.output.give(
        {"file": str(target), "digest": digest, "size": bytes_, "service": descriptor},
        styled(f"{target}: {descriptor.id} ({descriptor.name}), {size(bytes_)}", "bold"),
        facts({"digest": digest}),
    )


@click.command(cls=Command, without=ASKS)
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def validate(file: Path) -> None:
    """Check the archive FILE and show what it describes."""
    from csar import describe_sync

    session = command_session()
    descriptor = describe_sync(file)
    session.output.give(descriptor, styled(f"{file} is a valid CSAR", "bold green"), _described(descriptor))


def _described(descriptor: ServiceDescriptor) -> RenderableType:
    return facts(
        {
            "id": descriptor.id,
            "name": descriptor.name,
            "version": descriptor.version,
            "description": descriptor.description,
            "kind": descriptor.kind,
            "category": descriptor.category,
            "takes": ", ".join(descriptor.inputs),
            "gives": ", ".join(descriptor.outputs),
            "memory": f"{descriptor.mem_requirement} MB",
            "alive time": f"{descriptor.alive_time} s" if descriptor.alive_time else "until stopped",
            "ports": ", ".join(f"{p.port}/{p.protocol}" for p in descriptor.ports),
            "parameters": ", ".join(f"{k}={p.default}" for k, p in descriptor.parameters.items()),
            "variants": ", ".join(descriptor.variants),
        }
    )


@click.command(cls=Command, short_help="Publish a CSAR or a folder.")
@click.argument("source", type=_existing)
def publish(source: Path) -> None:
    """Publish SOURCE (a CSAR, or a folder that is packed first) through a controller, which keeps it."""
    session = command_session()
    with _archive_of(source) as (archive, descriptor):
        signed = _signed(session, archive, descriptor)

        async def work() -> ServiceView:
            async with session.connected(changing=True) as client:
                with session.output.progress() as on_progress:
                    return await client.publish(archive, signed.envelope, on_progress)

        view = asyncio.run(work())
    session.output.give(view, styled(f"{view.id} ({view.name}) is published", "bold"), _shown(view))


@contextmanager
def _archive_of(source: Path) -> Iterator[tuple[Path, ServiceDescriptor]]:
    """The archive to send and what it says of itself; a folder is packed into a file that lives for the block."""
    from csar import describe_sync
    from csar import pack as pack_archive

    if source.is_dir():
        with tempfile.TemporaryDirectory(prefix="cornerstore-") as folder:
            archive = Path(folder) / (source.resolve().name + SUFFIX)
            yield archive, pack_archive(source, archive)
    else:
        yield source, describe_sync(source)


def _signed(session: Session, archive: Path, descriptor: ServiceDescriptor) -> Signed:
    from node.cli.publisher import publisher_key, signed_archive

    return signed_archive(archive, descriptor, publisher_key(session.data_dir))


@click.command(cls=Command, without=ASKS, short_help="Serve archives from this machine until Ctrl-C.")
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
def seed(files: tuple[Path, ...]) -> None:
    """Serve FILES from this machine, as a store node of its mesh, until Ctrl-C.

    What nobody has published yet is published with this machine's key. That record stays in the mesh when seeding
    ends; `cornerstore withdraw` takes it off. Of what is published already no second record is made.
    """
    from csar import describe_sync
    from node.cli.serving import seed_files

    session = command_session()
    signed = [(file, _signed(session, file, describe_sync(file))) for file in files]
    seed_files(session, signed)


@click.command(cls=Command, short_help="List published services.")
@click.argument("text", required=False)
@click.option("--category", metavar="PATH", help="This category and all below it.")
@click.option("--input", "inputs", metavar="TYPE", multiple=True)
@click.option("--output", "outputs", metavar="TYPE", multiple=True)
@click.option("--id", "service_id", metavar="ID")
@click.option("--limit", metavar="N", type=click.IntRange(1), help="At most so many. Default: 100; with --json, all.")
def search(
    text: str | None,
    category: str | None,
    inputs: tuple[str, ...],
    outputs: tuple[str, ...],
    service_id: str | None,
    limit: int | None,
) -> None:
    """List published services, whose id, name or description holds TEXT if it is given."""
    session = command_session()
    # Without any condition, everything: the root of all categories.
    given = (text, service_id) != (None, None)
    subtree = check_category(category) if category is not None else (None if given else "/")

    at_most = limit if limit or session.output.json else SHOWN

    async def work() -> Listing[ServiceView]:
        async with session.connected() as client:
            return await client.services(
                category=subtree, input=inputs, output=outputs, id=service_id, q=text, at_most=at_most
            )

    found = asyncio.run(work())
    session.output.give(
        found.items,
        table(
            ("ID", "NAME", "CATEGORY", "TAKES", "GIVES", "SIZE", "DIGEST", "PUBLISHER"),
            [
                (
                    s.id,
                    s.name,
                    s.category,
                    ", ".join(s.inputs),
                    ", ".join(s.outputs),
                    size(s.size),
                    short_digest(s.digest),
                    s.publisher[:8],
                )
                for s in found.items
            ],
        ),
    )
    if len(found.items) < found.total:
        session.output.note(
            f"{len(found.items)} of {found.total}, more with --limit {found.total} or fewer with a narrower search."
        )


@click.command(cls=Command, short_help="Show one published service.")
@click.argument("service")
def show(service: str) -> None:
    """Show the published SERVICE (an id, a name, a digest or the beginning of one)."""
    session = command_session()

    async def work() -> ServiceView:
        async with session.connected() as client:
            return await resolve(client, service)

    view = asyncio.run(work())
    session.output.give(view, _shown(view))
    session.output.note(
        f"Ports and parameters are in the archive: cornerstore fetch {short_digest(view.digest)} -o FILE, "
        "then cornerstore validate FILE."
    )


def _shown(view: ServiceView) -> RenderableType:
    return facts(
        {
            "id": view.id,
            "name": view.name,
            "version": view.version,
            "description": view.description,
            "category": view.category,
            "takes": ", ".join(view.inputs),
            "gives": ", ".join(view.outputs),
            "memory": f"{view.mem} MB",
            "variants": "; ".join(map(_variant, view.variants)),
            "size": size(view.size),
            "digest": view.digest,
            "publisher": view.publisher,
            "valid for": remaining(view.expires_at),
        }
    )


def _variant(variant: VariantView) -> str:
    claims = [f"accuracy {variant.accuracy:g}"] if variant.accuracy is not None else []
    claims += [f"{variant.latency_ms:g} ms"] if variant.latency_ms is not None else []
    return f"{variant.name} ({', '.join([*claims, f'{variant.mem} MB'])})"


async def resolve(client: ControllerClient, service: str) -> ServiceView:
    """The one service that `service` names. Raises NoMatchingService, or AmbiguousService with its candidates."""
    return _sole(await named(client, service), service)


async def named(client: ControllerClient, service: str) -> list[ServiceView]:
    """All records of the services with that id or name, or with the digest that `service` is or begins.

    Raises NoMatchingService if there are none.
    """
    if is_digest(service):
        newest = await client.service(service)
        found = [s for s in (await client.services(id=newest.id)).items if s.digest == service]
        return found or [newest]
    found = []
    if DIGEST_PREFIX not in service:
        check_service_id(service)
        found = (await client.services(id=service)).items
        found = found or [s for s in (await client.services(q=service)).items if s.name == service]
    if not found and (digest := await whole_digest(client, service)):
        return await named(client, digest)
    if not found:
        from region_controller.near_misses import no_such_service  # rarely needed, slow to import

        raise no_such_service(service, (await client.services(category="/", at_most=MAX_COMPARED)).items)
    return found


def _sole(found: Sequence[ServiceView], service: str) -> ServiceView:
    """The newest version, if all are of one service. Raises AmbiguousService."""
    newest = _newest(found)
    if len(newest) == 1:
        return newest[0]
    raise AmbiguousService(
        f"{len(newest)} services are called {service}", fix="Name one by its digest.", candidates=candidates(newest)
    )


def _newest(services: Sequence[ServiceView]) -> list[ServiceView]:
    """Per publisher and name, the version published last."""
    newest: dict[tuple[str, str, str], ServiceView] = {}
    for service in sorted(services, key=lambda s: s.published_at):
        newest[service.publisher, service.id, service.name] = service
    return list({s.digest: s for s in newest.values()}.values())


@click.command(cls=Command)
@click.argument("service")
@click.option("--out", "-o", type=click.Path(path_type=Path, dir_okay=False), help="Default: the service's id + .csar")
@click.option("--force", is_flag=True, help="Overwrite the file if it is there already.")
def fetch(service: str, out: Path | None, force: bool) -> None:
    """Download the archive of SERVICE, verified against its digest."""
    session = command_session()

    async def work() -> tuple[ServiceView, Path, int]:
        async with session.connected() as client:
            view = await resolve(client, service)
            target = out or Path(_file_name(view))
            if target.exists() and not force:
                raise already_there(target)
            with session.output.progress() as on_progress:
                return view, target, await client.fetch(view.digest, target, on_progress)

    view, target, bytes_ = asyncio.run(work())
    session.output.give(
        {"file": str(target), "digest": view.digest, "size": bytes_},
        styled(f"{target}: {view.id} ({view.name}), {size(bytes_)}", "bold"),
        facts({"digest": view.digest}),
    )


def _file_name(view: ServiceView) -> str:
    """From the network, so made harmless: no folders, no hidden files."""
    safe = "".join(c if c.isascii() and (c.isalnum() or c in "-_.") else "_" for c in view.id).lstrip(".")
    return (safe or "service") + SUFFIX


def own_record(found: Sequence[ServiceView], service: str, publisher: str) -> ServiceView:
    """Among the records that `service` names, the publisher's own; where it has none, one of another.

    Raises AmbiguousService if several services are meant.
    """
    own = [s for s in found if s.publisher == publisher]
    return _sole(own or found, service)


@click.command(cls=Command, short_help="Take a service off the mesh.")
@click.argument("service")
def withdraw(service: str) -> None:
    """Take SERVICE (a digest, an id or a name), published by this machine's key, off the mesh."""
    from node.cli.publisher import publisher_key, signed_tombstone
    from protocol.records import raw_public_key

    session = command_session()
    key = publisher_key(session.data_dir)

    async def work() -> ServiceView:
        async with session.connected(changing=True) as client:
            view = own_record(await named(client, service), service, raw_public_key(key).hex())
            await client.withdraw(view.digest, signed_tombstone(view, key).envelope)
            return view

    view = asyncio.run(work())
    session.output.give(
        {"withdrawn": view.digest, "id": view.id, "name": view.name},
        styled(f"{view.id} ({view.name}) is withdrawn", "bold"),
        facts({"digest": view.digest}),
    )
