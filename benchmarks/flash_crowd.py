"""A flash crowd: N sites ask for one new service at the same moment, beside the same bytes pulled from a registry.

Ours: N real nodes in network namespaces; at each, a client asks its own controller for the archive
(`GET /v1/content/DIGEST`), the node fetches it through the mesh (mutual TLS, each chunk and the whole verified, written
to disk) and sends it on. Time: until the last client has all bytes and their digest is right.
Reference: `docker-registry` at the seed's site, the same archive as an image's only layer, pulled by curl at N sites
over the same links (plain HTTP).

`registry`: the registry's time to the last of the largest crowd over ours. `seeder_uploads`: bytes that left the seed's
site (all of them, see `benchmarks.limited_sites`) over the archive's size. `lookups_per_site`: with a question, for
whatever purpose, while the crowd fetched; `datagrams_per_site`: requests that each site sent in the overlay meanwhile.

    make bench-flash-crowd ARGS="--rate-mbit 100 --size-mb 48"
"""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.limited_sites import SEED, LimitedSites, all_at_once, content_url, limited_sites
from benchmarks.plain_registry import PlainRegistry, running_registry
from benchmarks.plots import require_matplotlib
from benchmarks.report import RESULTS, finish

CROWDS = (2, 4, 8, 16)


async def ours(there: LimitedSites, crowd: int, size: int) -> dict[str, Any]:
    digest, archive = await there.publish(size)
    names = there.askers[:crowd]
    urls = [content_url(there.sites[name], digest) for name in names]
    asked = await there.overlay_counts(names)
    before, busy, cpu = await there.sent_bytes(SEED), _busy_s(), there.node_cpu_s()
    began = time.monotonic()
    times = await all_at_once(there, names, urls, digest)
    wall = time.monotonic() - began
    cpu, busy = there.node_cpu_s() - cpu, (_busy_s() - busy) / wall / (os.cpu_count() or 1)
    sent = await there.sent_bytes(SEED) - before
    asked_since = await there.overlay_counts(names)
    return {
        "sites": crowd,
        "last_s": times[-1],
        "median_s": statistics.median(times),
        "seeder_uploads": sent / archive,
        "node_cpu_s": cpu,
        "processors_busy": busy,
        "lookups_per_site": (asked_since["lookups_count"] - asked["lookups_count"]) / crowd,
        "datagrams_per_site": (asked_since["datagrams_calls"] - asked["datagrams_calls"]) / crowd,
    }


async def pulled(there: LimitedSites, registry: PlainRegistry, crowd: int, layer: str) -> dict[str, Any]:
    names = there.askers[:crowd]
    busy, began = _busy_s(), time.monotonic()
    times = await all_at_once(there, names, [registry.blob_url(layer)] * crowd, layer)
    wall = time.monotonic() - began
    return {
        "sites": crowd,
        "last_s": times[-1],
        "median_s": statistics.median(times),
        "processors_busy": (_busy_s() - busy) / wall / (os.cpu_count() or 1),
    }


def _busy_s() -> float:
    """Seconds that all processors of the machine were not idle, whoever used them."""
    fields = [int(word) for word in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
    return (sum(fields[:8]) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")


async def measure(rate_mbit: float, size: int, crowds: Sequence[int], runs: int) -> None:
    _raise_file_limit()
    rows: list[dict[str, Any]] = []
    reference: list[dict[str, Any]] = []
    async with (
        limited_sites(max(crowds)) as there,
        running_registry(there.bed, there.host(SEED)) as registry,
    ):
        layer_file = there.bed.folder / "layer"
        layer_file.write_bytes(os.urandom(size))
        layer = await registry.push(layer_file)
        await there.limit(rate_mbit)
        link = (await pulled(there, registry, 1, layer))["last_s"]
        print(f"one pull: {size * 8e-6 / link:.1f} Mbit/s of {rate_mbit:g}", file=sys.stderr)
        for run in range(runs):
            for crowd in crowds:
                rows.append(await ours(there, crowd, size))
                print(f"run {run}: ours {_line(rows[-1])}", file=sys.stderr)
                reference.append(await pulled(there, registry, crowd, layer))
                print(f"run {run}: registry {_line(reference[-1])}", file=sys.stderr)
    mine, theirs = _medians(rows, crowds), _medians(reference, crowds)
    largest = max(crowds)
    name = "flash-crowd" if rate_mbit == 100 else f"flash-crowd-{rate_mbit:g}mbit"
    plot(name, mine, theirs, rate_mbit, size)
    finish(
        name,
        runs=runs,
        ours={"archive_mb": size / 1e6, "uplink_mbit": rate_mbit, "crowds": list(mine.values())},
        reference={"one_pull_mbit": round(size * 8e-6 / link, 1), "crowds": list(theirs.values())},
        ratios={
            "registry": round(theirs[largest]["last_s"] / mine[largest]["last_s"], 2),
            "seeder_uploads": mine[largest]["seeder_uploads"],
        },
    )


def _medians(rows: Sequence[dict[str, Any]], crowds: Sequence[int]) -> dict[int, dict[str, float]]:
    out: dict[int, dict[str, float]] = {}
    for crowd in crowds:
        of_crowd = [row for row in rows if row["sites"] == crowd]
        out[crowd] = {key: round(statistics.median(row[key] for row in of_crowd), 3) for key in of_crowd[0]}
    return out


def _line(row: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value:.2f}" for key, value in row.items())


def _raise_file_limit() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def plot(
    name: str, mine: dict[int, dict[str, float]], theirs: dict[int, dict[str, float]], rate_mbit: float, size: int
) -> None:
    """Time to the last site against N, logarithmic in N: a straight line grows with log N."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4))
    axes.plot(list(theirs), [row["last_s"] for row in theirs.values()], "s-", label="docker-registry")
    axes.plot(list(mine), [row["last_s"] for row in mine.values()], "o-", label="Cornerstore")
    axes.axhline(size * 8e-6 / rate_mbit, linestyle=":", color="grey", label="the archive once over one uplink")
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(mine), [str(crowd) for crowd in mine])
    axes.set_xlabel("sites that ask at the same moment")
    axes.set_ylabel("seconds until the last has it")
    axes.set_ylim(bottom=0)
    axes.set_title(f"{size / 1e6:.0f} MB, uplinks of {rate_mbit:g} Mbit/s")
    axes.legend()
    figure.tight_layout()
    RESULTS.mkdir(exist_ok=True)
    figure.savefig(RESULTS / f"{name}.svg")


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--rate-mbit", type=float, default=100.0)
    arguments.add_argument("--size-mb", type=float, default=32.0)
    arguments.add_argument("--crowds", type=int, nargs="+", default=CROWDS)
    arguments.add_argument("--runs", type=int, default=1)
    given = arguments.parse_args()
    require_matplotlib()
    asyncio.run(measure(given.rate_mbit, int(given.size_mb * 1e6), given.crowds, given.runs))


if __name__ == "__main__":
    main()
