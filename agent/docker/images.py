"""Images of services: built from an archive's Dockerfile, or loaded from an image archive inside it.

An image is tagged with the archive's digest, `cornerstore/svc:<first 32 hex>`, so the same archive is never built
twice; an image made of a particular artifact carries 8 more digits of the artifact's name.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import docker.errors
from msgspec import Struct

import csar
from agent.docker.dockerfile import rewrite_from
from agent.docker.engine import Api, DockerEngine, StreamingClient
from agent.docker.image_archive import NamelessArchive
from agent.runtime import OnProgress, Source, artifact_of, last_lines
from protocol.identifiers import DIGEST_PREFIX
from protocol.instances import Progress
from protocol.problems import BuildFailed
from protocol.service import Artifact

REPOSITORY = "cornerstore/svc"
DIGEST_LABEL = "cornerstore.digest"
MAX_LOG_BYTES = 1 << 20
BUILD_CALL_S = 3600
_STEP = re.compile(r"Step (\d+)/(\d+) : (.*)")


class BuildSettings(Struct, frozen=True, kw_only=True):
    """What a build may use. A RUN step is a stranger's code, as the service is.

    `network`: `bridge`, so that `pip install` works as anywhere, or `none`. `scratch`: a folder that is emptied at
    every start of the runtime; None: the machine's temporary folder.
    """

    memory_mb: int = 1024
    network: str = "bridge"
    scratch: Path | None = None


class Unpack(Protocol):
    """What of `csar` takes files out of a vetted archive."""

    def extract_directory(self, path: Path, folder: str, dest: Path) -> None: ...

    def file_pieces(self, path: Path, member: str) -> Iterator[bytes]: ...


def digest_tag(digest: str) -> str:
    """What of a tag says which archive the image is made of."""
    return digest.removeprefix(DIGEST_PREFIX)[:32]


def image_tag(digest: str, artifact: str | None) -> str:
    special = "" if artifact is None else "-" + hashlib.sha256(artifact.encode()).hexdigest()[:8]
    return f"{REPOSITORY}:{digest_tag(digest)}{special}"


class DockerImages:
    def __init__(
        self,
        engine: DockerEngine,
        aliases: Mapping[str, str],
        unpack: Unpack | None = None,
        *,
        settings: BuildSettings,
    ) -> None:
        self._engine = engine
        self._aliases = aliases
        self._settings = settings
        self._unpack: Unpack = unpack if unpack is not None else csar
        self._watched = False
        self._changes = 0
        self._listed: tuple[int, frozenset[str]] = (-1, frozenset())
        """After how many changes the engine was asked for the names of its images, and what it said."""

    def watch(self, watched: bool) -> None:
        """Whether each change is told by `changed` from now on."""
        self._watched = watched
        self.changed()

    def changed(self) -> None:
        """There may be other images than before."""
        self._changes += 1

    async def find(self, digest: str, artifact: str | None) -> str | None:
        tag = image_tag(digest, artifact)
        try:
            await self._engine.call(lambda api: api.inspect_image(tag))
        except docker.errors.NotFound:
            return None
        return tag

    async def identity(self, source: Source) -> str | None:
        """The id of the image that a source has now."""
        tag = image_tag(source.digest, artifact_of(source.descriptor, source.variant))
        try:
            return str((await self._engine.call(lambda api: api.inspect_image(tag)))["Id"])
        except docker.errors.NotFound:
            return None

    async def built(self, digests: Collection[str]) -> frozenset[str]:
        """Those of `digests` whose default image is here. Raises EngineUnavailable, whether that is known or not."""
        changes, names = self._listed
        if self._watched and changes == self._changes:
            await self._engine.ping()
        else:
            names = await self._names()
        return frozenset(digest for digest in digests if image_tag(digest, None) in names)

    async def _names(self) -> frozenset[str]:
        """Asked after a change only: for a thousand images, each answer holds Python up for a tenth of a second."""
        changes = self._changes
        images = await self._engine.call(lambda api: api.images(name=REPOSITORY))
        names = frozenset(name for image in images for name in image.get("RepoTags") or ())
        self._listed = changes, names
        return names

    async def make(self, source: Source, *, force_rebuild: bool, on_progress: OnProgress) -> str:
        """Build or load the image, whatever is there already. Raises BuildFailed, InvalidArchive, DiskFull."""
        wanted = artifact_of(source.descriptor, source.variant)
        tag = image_tag(source.digest, wanted)
        work = _Make(self._engine.url, source, tag, self._unpack, on_progress, self._settings)
        artifact = _artifact(source, wanted)
        try:
            if artifact is not None and artifact.kind == "OCIImage":
                member = artifact.file
                await self._engine.long_call(lambda: work.load(member), cancel=work.cancel)
            else:
                folder = source.descriptor.directory if artifact is None else artifact.file
                aliases = self._aliases
                await self._engine.long_call(
                    lambda: work.build(folder or "", aliases, force_rebuild), cancel=work.cancel
                )
        except docker.errors.APIError as error:
            await self._engine.ping()
            raise build_failed(str(error.explanation or error), work.log) from error
        except BuildFailed:
            await self._engine.ping()  # an engine that stops kills its builds first: then it is the engine that failed
            raise
        self.changed()
        return work.tag

    def clear_scratch(self) -> None:
        """Remove what a killed node left of its builds."""
        if self._settings.scratch is not None:
            shutil.rmtree(self._settings.scratch, ignore_errors=True)
            self._settings.scratch.mkdir(parents=True, exist_ok=True)


def _artifact(source: Source, wanted: str | None) -> Artifact | None:
    """The artifact asked for; else an image archive, which needs neither a registry nor a build; else none."""
    artifacts = source.descriptor.artifacts
    if wanted is not None:
        found = next((a for a in artifacts if a.name == wanted), None)
        if found is None or found.kind == "WasmModule":
            raise BuildFailed(f"the variant's artifact {wanted!r} is no image", fix="Correct the description.", log=[])
        return found
    images = [a for a in artifacts if a.kind == "OCIImage"]
    contexts = [a for a in artifacts if a.kind == "DockerBuildContext"]
    if images:
        return images[0]
    return contexts[0] if contexts and source.descriptor.directory is None else None


class _Make:
    """One build or load, on a thread. `log` grows as the engine tells."""

    def __init__(
        self,
        url: str,
        source: Source,
        tag: str,
        unpack: Unpack,
        on_progress: OnProgress,
        settings: BuildSettings,
    ) -> None:
        self._settings = settings
        self._url = url
        self._source = source
        self.tag = tag
        self._unpack = unpack
        self._on_progress = on_progress
        self._client: StreamingClient | None = None
        self._cancelled = False
        self._log = ""

    @property
    def log(self) -> list[str]:
        return list(last_lines(self._log))

    def cancel(self) -> None:
        """From another thread: end the work."""
        self._cancelled = True
        if self._client is not None:
            self._client.cut()

    def build(self, folder: str, aliases: Mapping[str, str], force_rebuild: bool) -> None:
        with self._scratch() as scratch, self._connected() as client:
            context = Path(scratch) / "context"
            self._unpack.extract_directory(self._source.archive, folder, context)
            _rewrite(context / "Dockerfile", aliases)
            memory = self._settings.memory_mb * 1_000_000
            stream = client.build(
                path=str(context),
                tag=self.tag,
                nocache=force_rebuild,
                rm=True,
                forcerm=True,
                decode=True,
                timeout=BUILD_CALL_S,
                labels={DIGEST_LABEL: self._source.digest},
                network_mode=self._settings.network,
                container_limits={"memory": memory, "memswap": memory},
            )
            for said in stream:
                self._heard(said)
        if "\nSuccessfully built " not in self._log:
            raise BuildFailed("the engine's answer ended before the build did", log=self.log)

    def load(self, member: str) -> None:
        with self._connected() as client:
            # An archive must not say which name its image gets here: it could replace a base image of other services.
            archive = NamelessArchive(self._unpack.file_pieces(self._source.archive, member))
            api: Api = client
            for said in api.load_image(self._until_cancelled(archive)):
                self._heard(said)
            repository, _, tag = self.tag.partition(":")
            client.tag(archive.image, repository, tag, force=True)

    def _until_cancelled(self, pieces: Iterable[bytes]) -> Iterator[bytes]:
        for piece in pieces:
            if self._cancelled:
                raise BuildFailed("the build was cancelled", log=[])
            yield piece

    def _scratch(self) -> tempfile.TemporaryDirectory[str]:
        return tempfile.TemporaryDirectory(prefix="cornerstore-build-", dir=self._settings.scratch)

    def _connected(self) -> StreamingClient:
        if self._cancelled:
            raise BuildFailed("the build was cancelled", log=[])
        self._client = StreamingClient(base_url=self._url, version="auto", timeout=BUILD_CALL_S)
        return self._client

    def _heard(self, said: Mapping[str, Any]) -> None:
        text = str(said.get("stream") or said.get("status") or "")
        self._log = (self._log + text + ("" if text.endswith("\n") else "\n"))[-MAX_LOG_BYTES:]
        if "error" in said:
            message = str(said["error"])
            self._log += message + "\n"
            raise build_failed(message, self.log)
        step = _STEP.match(text)
        if step is not None:
            self._on_progress(Progress("build", step[3].strip()[:200], int(step[1]), int(step[2])))


def _rewrite(dockerfile: Path, aliases: Mapping[str, str]) -> None:
    if not dockerfile.is_file():
        raise BuildFailed(
            "the archive has no Dockerfile in its directory", fix="Add one, or correct `directory`.", log=[]
        )
    text = dockerfile.read_bytes().decode("utf-8", errors="surrogateescape")
    dockerfile.write_bytes(rewrite_from(text, aliases).encode("utf-8", errors="surrogateescape"))


_NO_BASE = ("pull access denied", "manifest unknown", "manifest for", "dial tcp", "no such host", "i/o timeout")


def _base(lines: Sequence[str]) -> str:
    """The image of the FROM line that was tried last; a well-known one if the log does not tell."""
    steps = (_STEP.match(line) for line in reversed(lines))
    words = next((step[3].split() for step in steps if step is not None and step[3].upper().startswith("FROM ")), [])
    return next((word for word in words[1:] if not word.startswith("--")), "python:3.11-slim")


def build_failed(message: str, lines: list[str]) -> BuildFailed:
    """What the engine said, in `lines` of its log, with what would help."""
    fix = "Read the log; the Dockerfile must build with the files of the archive alone."
    if any(sign in message for sign in _NO_BASE):
        fix = (
            "The base image is not here and no registry gives it: name a local one in config.toml, under "
            f'[agent.docker.base_image_aliases], such as "{_base(lines)}" = "cornerstore/python:3.11", '
            "and start the node again (docs/base-images.md)."
        )
    elif "layer.tar: no such file" in message:
        fix = "The image archive leaves out base layers that are not here: publish it with all its layers."
    return BuildFailed(f"the engine says: {message.strip()[:500]}", fix=fix, log=lines)
