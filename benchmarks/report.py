"""How a benchmark ends: one JSON object as the last line, and the same object in `benchmarks/results/NAME.json`."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


def machine() -> str:
    """Processor, cores and memory, as a reader needs them to judge the figures."""
    model = "unknown processor"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    gigabytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    cores = len(os.sched_getaffinity(0))
    return f"{model}, {cores} cores, {gigabytes:.0f} GB, Linux {platform.release()}, Python {platform.python_version()}"


def summary(samples: Sequence[float]) -> dict[str, float]:
    """Median, 99th percentile, least and most, as the samples' unit."""
    ordered = sorted(samples)
    return {
        "p50": round(statistics.median(ordered), 3),
        "p99": round(ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))], 3),
        "min": round(ordered[0], 3),
        "max": round(ordered[-1], 3),
    }


def median_ratio(ours: Sequence[float], reference: Sequence[float]) -> float:
    """Median of the pairwise ratios of runs that were taken in turn."""
    return round(statistics.median(a / b for a, b in zip(ours, reference, strict=True)), 4)


def finish(
    name: str,
    *,
    runs: int,
    ours: Mapping[str, object],
    reference: Mapping[str, object],
    ratios: Mapping[str, float],
    claims: Sequence[object] | None = None,
    folder: Path = RESULTS,
) -> None:
    """Print the object and keep it. `claims`: where somebody else's are judged."""
    result = {
        "name": name,
        "machine": machine(),
        "runs": runs,
        "ours": ours,
        "reference": reference,
        "ratios": ratios,
        **({} if claims is None else {"claims": claims}),
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result))
