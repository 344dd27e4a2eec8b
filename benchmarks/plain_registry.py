"""Debian's `docker-registry` on a host of the test bed, holding one image of one layer.

A pull here is what moves the bytes in `docker pull`: GET of the manifest, then of its blobs, each verified against its
digest. Unpacking, which a real pull does on top, is left out, in the registry's favour.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.multihost.testbed import Host, TestBed
from tests.waiting import until

PORT = 5000
IMAGE = "bench"
MANIFEST_TYPE = "application/vnd.docker.distribution.manifest.v2+json"
_CONFIG = """version: 0.1
log: {{level: error, accesslog: {{disabled: true}}}}
storage: {{filesystem: {{rootdirectory: {root}}}, cache: {{blobdescriptor: inmemory}}}}
http: {{addr: "0.0.0.0:{port}"}}
"""


class PlainRegistry:
    """Made by `running_registry`."""

    def __init__(self, bed: TestBed, host: Host) -> None:
        self._bed = bed
        self._host = host
        self.url = f"http://{host.address}:{PORT}"

    def blob_url(self, digest: str) -> str:
        return f"{self.url}/v2/{IMAGE}/blobs/{digest}"

    async def push(self, layer: Path) -> str:
        """The digest of the layer's bytes. They are an image tagged with that digest's first digits afterwards."""
        body = await asyncio.to_thread(layer.read_bytes)
        digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
        config = layer.with_suffix(".config")
        config.write_text(json.dumps({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers"}}))
        config_digest = f"sha256:{hashlib.sha256(config.read_bytes()).hexdigest()}"
        await self._put_blob(layer, digest)
        await self._put_blob(config, config_digest)
        manifest = layer.with_suffix(".manifest")
        manifest.write_text(
            json.dumps(
                {
                    "schemaVersion": 2,
                    "mediaType": MANIFEST_TYPE,
                    "config": _descriptor(config, config_digest, "application/vnd.docker.container.image.v1+json"),
                    "layers": [_descriptor(layer, digest, "application/vnd.docker.image.rootfs.diff.tar.gzip")],
                }
            )
        )
        await self._curl(
            "-X",
            "PUT",
            "-H",
            f"Content-Type: {MANIFEST_TYPE}",
            "--data-binary",
            f"@{manifest}",
            f"{self.url}/v2/{IMAGE}/manifests/{_tag(digest)}",
        )
        return digest

    def manifest_url(self, digest: str) -> str:
        return f"{self.url}/v2/{IMAGE}/manifests/{_tag(digest)}"

    async def _put_blob(self, path: Path, digest: str) -> None:
        headers = await self._curl("-X", "POST", "-D", "-", "-o", "/dev/null", f"{self.url}/v2/{IMAGE}/blobs/uploads/")
        location = next(
            line.split(":", 1)[1].strip() for line in headers.splitlines() if line.lower().startswith("location:")
        )
        await self._curl(
            "-X",
            "PUT",
            "-H",
            "Content-Type: application/octet-stream",
            "--data-binary",
            f"@{path}",
            f"{location}&digest={digest}",
        )

    async def _curl(self, *arguments: str) -> str:
        return await self._bed.run(self._host, "curl", "-sSf", *arguments, timeout_s=120)


@asynccontextmanager
async def running_registry(bed: TestBed, host: Host) -> AsyncIterator[PlainRegistry]:
    """Installs Debian's package if it is not here (root)."""
    if shutil.which("docker-registry") is None:
        await asyncio.to_thread(subprocess.run, ["apt-get", "install", "-y", "-q", "docker-registry"], check=True)
    folder = bed.folder / "registry"
    folder.mkdir()
    config = folder / "config.yml"
    config.write_text(_CONFIG.format(root=folder / "data", port=PORT))
    registry = PlainRegistry(bed, host)
    process = await bed.popen(host, ["docker-registry", "serve", str(config)], log=folder / "log")
    try:

        async def answers() -> bool:
            try:
                await bed.run(host, "curl", "-sf", f"{registry.url}/v2/")
            except RuntimeError:
                return False
            return True

        await until(answers, timeout_s=20)
        yield registry
    finally:
        await bed.stop(process)


def _descriptor(path: Path, digest: str, media_type: str) -> dict[str, object]:
    return {"mediaType": media_type, "size": path.stat().st_size, "digest": digest}


def _tag(digest: str) -> str:
    return digest.removeprefix("sha256:")[:16]
