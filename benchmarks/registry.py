"""One site pulls one archive: through the mesh, beside the same bytes from Debian's `docker-registry`, in turn.

Ours: `GET /v1/content/DIGEST` at the site's own controller until the last byte is there: chunks over mutual TLS,
each and the whole verified, written to disk, read again and sent to the asker. The reference: curl of the registry's
manifest and of the blob, plain HTTP, nothing unpacked. Both end with `sha256sum`, which is not counted. The site never
had the archive before.

`pull`: median of ours over the registry's, uplinks of 100 Mbit/s. `pull_unlimited`: with links as fast as the machine.
"""

from __future__ import annotations

import asyncio
import os
import sys

from benchmarks.limited_sites import SEED, LimitedSites, content_url, downloaded, limited_sites
from benchmarks.plain_registry import MANIFEST_TYPE, PlainRegistry, running_registry
from benchmarks.report import finish, median_ratio, summary

RUNS = 5
SIZE = 48_000_000
RATE_MBIT = 100.0
UNLIMITED_MBIT = 100_000.0


async def pull(there: LimitedSites, registry: PlainRegistry, layer: str) -> tuple[float, float]:
    """Seconds: ours, of a new archive of the same size; the registry's."""
    digest, _ = await there.publish(SIZE)
    host, target = there.host("s1"), there.bed.folder / "got"
    ours = await downloaded(there.bed, host, content_url(there.sites["s1"], digest), target, digest)
    began = asyncio.get_running_loop().time()
    await there.bed.run(
        host, "curl", "-sSf", "-o", "/dev/null", "-H", f"Accept: {MANIFEST_TYPE}", registry.manifest_url(layer)
    )
    manifest = asyncio.get_running_loop().time() - began
    return ours, manifest + await downloaded(there.bed, host, registry.blob_url(layer), target, layer)


async def main() -> None:
    samples: dict[str, list[tuple[float, float]]] = {"limited": [], "unlimited": []}
    async with limited_sites(1) as there, running_registry(there.bed, there.host(SEED)) as registry:
        layer_file = there.bed.folder / "layer"
        layer_file.write_bytes(os.urandom(SIZE))
        layer = await registry.push(layer_file)
        for link, rate in (("limited", RATE_MBIT), ("unlimited", UNLIMITED_MBIT)):
            await there.limit(rate)
            await pull(there, registry, layer)  # connections and caches are warm for both
            for run in range(RUNS):
                samples[link].append(await pull(there, registry, layer))
                print(
                    f"{link}, run {run}: ours {samples[link][-1][0]:.2f} s, registry {samples[link][-1][1]:.2f} s",
                    file=sys.stderr,
                )
    ours = {link: [mine for mine, _ in pairs] for link, pairs in samples.items()}
    theirs = {link: [registry for _, registry in pairs] for link, pairs in samples.items()}
    finish(
        "registry",
        runs=RUNS,
        ours={"archive_mb": SIZE / 1e6, **{f"{link}_s": summary(values) for link, values in ours.items()}},
        reference={f"{link}_s": summary(values) for link, values in theirs.items()},
        ratios={
            "pull": median_ratio(ours["limited"], theirs["limited"]),
            "pull_unlimited": median_ratio(ours["unlimited"], theirs["unlimited"]),
        },
    )


if __name__ == "__main__":
    asyncio.run(main())
