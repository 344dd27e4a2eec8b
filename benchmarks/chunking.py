"""What is new of the second of two builds of one image, and how fast content is added.

Two image archives of the same layers, the second with five small edits in its files (a line of a script, a version
string, a new small file, a byte in the middle of a large one, a file that grew), as `docker save` writes them: one tar
of layer tars. Cut content-defined as shipped, in fixed chunks of 1 MiB, and as `.tar.gz`. `new_share`: bytes of chunks
of the second that the first does not have, over all its bytes. `add_mb_s`: `Content.add` of a node: cut, verified,
written, synced, beside SHA-256 alone over the same file.
"""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import io
import os
import random
import sys
import sysconfig
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import aiohttp

from benchmarks.report import finish, median_ratio, summary
from dht.blobs.chunking import manifest_of
from dht.peer_http import PeerHttp
from dht.swarm.exchange import ContentConfig, running_content
from tests.content_sites import SiteDirectory, Whereabouts

RUNS = int(os.environ.get("RUNS", "5"))
FIXED = 1 << 20
WANTED = 300_000_000
LAYERS = 3
EDITS = 5


def files_of_this_machine() -> list[tuple[str, bytes]]:
    """Real files, as an image of a Python service holds them: the standard library, wheels, shared libraries."""
    found: list[tuple[str, bytes]] = []
    size = 0
    roots = [sysconfig.get_paths()["stdlib"], sysconfig.get_paths()["platlib"], "/usr/lib"]
    for root in roots:
        for path in sorted(Path(root).rglob("*")):
            if size >= WANTED:
                return found
            if path.is_file() and not path.is_symlink() and "__pycache__" not in path.parts:
                data = path.read_bytes()
                found.append((str(path), data))
                size += len(data)
    return found


def edited(files: list[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
    """Five small edits, at places that are drawn with a seed."""
    source = random.Random(1)
    changed = list(files)
    texts = [i for i, (name, data) in enumerate(files) if name.endswith(".py") and len(data) > 2000]
    large = max(range(len(files)), key=lambda i: len(files[i][1]))
    one, two, three = source.sample(texts, EDITS - 2)
    changed[one] = (files[one][0], files[one][1].replace(b"return", b"return  ", 1))
    changed[two] = (files[two][0], files[two][1] + b"\n# one more line\n")
    changed[three] = (files[three][0], b'"""Another docstring."""\n' + files[three][1])
    middle = len(files[large][1]) // 2
    changed[large] = (files[large][0], files[large][1][:middle] + b"!" + files[large][1][middle + 1 :])
    changed.insert(source.choice(texts), ("/etc/new.conf", b"answer = 42\n"))
    return changed


def image(files: list[tuple[str, bytes]]) -> bytes:
    """A tar of layer tars, without times: what a repeatable build saves. A file is in the same layer of both builds."""
    outer = io.BytesIO()
    with tarfile.open(fileobj=outer, mode="w") as archive:
        for number in range(LAYERS):
            inner = io.BytesIO()
            with tarfile.open(fileobj=inner, mode="w") as layer:
                for name, data in files:
                    if hashlib.sha256(str(Path(name).parent).encode()).digest()[0] % LAYERS == number:
                        add_file(layer, name.lstrip("/"), data)
            add_file(archive, f"layer{number}/layer.tar", inner.getvalue())
    return outer.getvalue()


def add_file(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    archive.addfile(entry, io.BytesIO(data))


def fixed(path: Path) -> Iterator[tuple[str, int]]:
    with path.open("rb") as file:
        while part := file.read(FIXED):
            yield hashlib.sha256(part).hexdigest(), len(part)


def content_defined(path: Path) -> Iterator[tuple[str, int]]:
    for chunk in manifest_of(path).chunks:
        yield chunk.digest, chunk.length


def new_share(old: list[tuple[str, int]], new: list[tuple[str, int]]) -> float:
    known = {digest for digest, _ in old}
    return round(sum(n for digest, n in dict(new).items() if digest not in known) / sum(n for _, n in new), 4)


async def add_rate(path: Path, folder: Path) -> float:
    """MB/s of one `add` into an empty store."""
    directory = SiteDirectory(Whereabouts(), 1, "127.0.0.1:1")
    async with (
        aiohttp.ClientSession() as session,
        running_content(ContentConfig(path=folder), directory=directory, http=PeerHttp(session, None)) as content,  # type: ignore[arg-type]
    ):
        began = time.perf_counter()
        await content.add(path)
        return path.stat().st_size / (time.perf_counter() - began) / 1e6


def hash_rate(path: Path) -> float:
    began = time.perf_counter()
    with path.open("rb") as file:
        hashlib.file_digest(file, "sha256")
    return path.stat().st_size / (time.perf_counter() - began) / 1e6


async def main() -> None:
    with tempfile.TemporaryDirectory(prefix="cornerstore-bench-") as temporary:
        folder = Path(temporary)
        files = files_of_this_machine()
        paths: dict[str, Path] = {}
        for build, contents in (("old", files), ("new", edited(files))):
            data = image(contents)
            paths[build] = folder / f"{build}.tar"
            paths[build].write_bytes(data)
            paths[f"{build}.gz"] = folder / f"{build}.tar.gz"
            paths[f"{build}.gz"].write_bytes(gzip.compress(data, 6, mtime=0))
            del data
        shares = {
            "new_share": new_share(list(content_defined(paths["old"])), list(content_defined(paths["new"]))),
            "fixed_1_mib": new_share(list(fixed(paths["old"])), list(fixed(paths["new"]))),
            "gzip": new_share(list(content_defined(paths["old.gz"])), list(content_defined(paths["new.gz"]))),
        }
        rates: list[float] = []
        hashes: list[float] = []
        for number in range(-1, RUNS):
            os.sync()
            rate, hashed = await add_rate(paths["old"], folder / f"store{number}"), hash_rate(paths["old"])
            print(number, f"add {rate:.0f} MB/s, sha256 alone {hashed:.0f} MB/s", file=sys.stderr)
            if number >= 0:
                rates.append(rate)
                hashes.append(hashed)
        finish(
            "chunking",
            runs=RUNS,
            ours={
                "bytes": paths["new"].stat().st_size,
                "chunks": len(manifest_of(paths["new"]).chunks),
                "new_share": shares["new_share"],
                "add_mb_s": summary(rates),
            },
            reference={
                "new_share_fixed_1_mib": shares["fixed_1_mib"],
                "new_share_tar_gz": shares["gzip"],
                "sha256_mb_s": summary(hashes),
            },
            ratios={**shares, "add_over_sha256": median_ratio(rates, hashes)},
        )


if __name__ == "__main__":
    asyncio.run(main())
