"""Plots of simulations: the same SVG for the same numbers. matplotlib is installed when it is first needed."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Mapping, Sequence

from benchmarks.report import RESULTS

MARKERS = "osv^D<>"

Panel = tuple[str, str, Mapping[str, Sequence[float]]]
"""Name, what is on the y axis, and lines by their label: a value for each size. `success` is in percent."""


def over_sizes(
    prefix: str, xlabel: str, sizes: Sequence[int], panels: Sequence[Panel], *, least_percent: float
) -> None:
    """`PREFIX-NAME.svg` of each panel, beside the results. `least_percent`: where success begins if none is below."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "cornerstore"
    from matplotlib import pyplot

    for name, label, lines in panels:
        figure, axes = pyplot.subplots(figsize=(7.2, 3.6), facecolor="white", layout="constrained")
        for (line, values), marker in zip(lines.items(), MARKERS, strict=False):
            axes.plot(sizes, values, marker=marker, label=line, alpha=0.8)
        axes.set(xscale="log", xticks=sizes, xticklabels=[str(s) for s in sizes], xlabel=xlabel, ylabel=label)
        axes.minorticks_off()
        if name == "success":
            axes.set_ylim(min(least_percent, *(v for values in lines.values() for v in values)) - 1, 100.5)
        else:
            axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        figure.legend(fontsize="small", loc="outside right upper")
        figure.savefig(RESULTS / f"{prefix}-{name}.svg", metadata={"Date": None})
        pyplot.close(figure)


def require_matplotlib() -> None:
    if importlib.util.find_spec("matplotlib") is None:
        install = [sys.executable, "-m", "pip", "install", "--quiet", "matplotlib>=3.9"]
        subprocess.run(install, check=True, stdout=sys.stderr)
