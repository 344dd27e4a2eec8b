"""The paper's figures with our values: Fig. 2, 3, 4a and 4b, and the ranges of all claims side by side."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from benchmarks.paper.claims import Claim
from benchmarks.paper.energy import PROCESSOR_SWEEP_W, Terms, energy
from benchmarks.paper.experiments import Results
from benchmarks.paper.runs import LINKS, STACK, STORES, Mode, Run, median_of, of, services_of, stacked

OFFLOADED: tuple[Mode, ...] = ("upload", "cold", "warm")
COLOURS = dict(zip(STACK, ("#b5651d", "#9e9ac8", "#3182bd", "#756bb1", "#31a354", "#bdbdbd", "#fdae6b"), strict=True))
LINES = {"upload": "#b5651d", "cold": "#3182bd", "warm": "#31a354", "local": "#636363"}


def all_figures(results: Results, claims: Sequence[Claim], terms: Terms, folder: Path) -> None:
    """`paper-*.svg` in the folder."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams.update({"svg.hashsalt": "cornerstore", "font.size": 9})
    folder.mkdir(parents=True, exist_ok=True)
    latency(results, folder / "paper-latency.svg")
    phone_energy(results, terms, folder / "paper-energy.svg")
    stores(results, folder / "paper-stores.svg")
    local(results, terms, folder / "paper-local.svg")
    ranges(claims, folder / "paper-claims.svg")


def latency(results: Results, file: Path) -> None:
    """Fig. 2: what a request takes, by phase."""
    offloaded = of(results.runs, store="lan")
    figure, panels = _panels(
        services_of(offloaded), "Fig. 2: from the request to the result (paper: 1.1 to 14 times faster)"
    )
    for service, axes in panels.items():
        columns = [
            (f"{mode}\n{link}", of(offloaded, service=service, mode=mode, link=link))
            for link in LINKS
            for mode in OFFLOADED
        ]
        _stacks(axes, columns)
        axes.set_title(f"{service}, {_size(results.archive_bytes[service])}")
    _save(figure, file, panels, "seconds", legend=True)


def stores(results: Results, file: Path) -> None:
    """Fig. 4a: a cold start on WiFi, by where the archive lies."""
    cold = of(results.runs, mode="cold", link="wifi")
    figure, panels = _panels(
        services_of(cold), "Fig. 4a: a cold start by where the archive lies (paper: cloud 33 to 200% slower)"
    )
    for service, axes in panels.items():
        runs = of(cold, service=service)
        _stacks(axes, [(store.replace("-", "\n"), of(runs, store=store)) for store in STORES])
        axes.set_title(service)
    _save(figure, file, panels, "seconds", legend=True)


def phone_energy(results: Results, terms: Terms, file: Path) -> None:
    """Fig. 3: a model of the same runs."""
    offloaded = of(results.runs, store="lan")
    with_tail = replace(terms, tail=True)
    title = "Fig. 3: energy of the phone. A model, not a measurement (paper: up to 94% less)"
    services = services_of(offloaded)
    figure, panels = _panels(services, title, rows=2)
    powers = dict(zip(services, figure.axes[len(services) :], strict=True))
    for service, axes in panels.items():
        labels, radio, processor, tail = [], [], [], []
        for link in LINKS:
            for mode in OFFLOADED:
                runs = of(offloaded, service=service, mode=mode, link=link)
                labels.append(f"{mode}\n{link}")
                radio.append(median_of(runs, lambda run: energy(run, terms).radio) if runs else 0.0)
                processor.append(median_of(runs, lambda run: energy(run, terms).processor) if runs else 0.0)
                tail.append(median_of(runs, lambda run: energy(run, with_tail).radio) - radio[-1] if runs else 0.0)
        places = range(len(labels))
        axes.bar(places, radio, color="#3182bd", label="radio")
        axes.bar(places, processor, bottom=radio, color="#31a354", label="processor")
        below = [a + b for a, b in zip(radio, processor, strict=True)]
        axes.bar(
            places, tail, bottom=below, color="white", edgecolor="#9ecae1", hatch="///", label="radio's tail afterwards"
        )
        for place, joules in zip(places, below, strict=True):
            axes.annotate(f"{joules:.2g}", (place, joules), ha="center", va="bottom", fontsize=7)
        axes.set_xticks(places, labels)
        axes.set_yscale("symlog", linthresh=0.1)
        axes.set_title(service)
        for link, style in zip(LINKS, ("-", ":"), strict=True):
            for mode in OFFLOADED:
                if runs := of(offloaded, service=service, mode=mode, link=link):
                    _sweep(powers[service], runs, terms, LINES[mode], style, f"{mode}, {link}")
    _swept(powers)
    _save(figure, file, panels, "joules", legend=True)


def local(results: Results, terms: Terms, file: Path) -> None:
    """Fig. 4b: the phone's own processor, as a throttled core; time, and the model's energy over the core's power."""
    services = services_of(of(results.runs, mode="local"))
    title = "Fig. 4b: on the phone or offloaded on WiFi (paper: twice the time, nearly six times the energy)"
    figure, times = _panels(services, title, rows=2)
    powers = dict(zip(services, figure.axes[len(services) :], strict=True))
    for service, axes in times.items():
        runs = of(results.runs, service=service)
        here = of(runs, mode="local")
        slowdowns = sorted({run.slowdown for run in here})
        at = {s: [run for run in here if run.slowdown == s] for s in slowdowns}
        axes.plot(slowdowns, [median_of(at[s], _total) for s in slowdowns], "o-", color=LINES["local"], label="local")
        offloaded = {mode: of(runs, mode=mode, link="wifi", store="lan") for mode in ("cold", "warm")}
        for mode, some in offloaded.items():
            if some:
                axes.axhline(median_of(some, _total), color=LINES[mode], label=mode)
        axes.set(yscale="log", xlabel="times slower than the edge's core", title=service)
        axes.set_xticks(slowdowns, [f"{s:g}" for s in slowdowns])
        reference = at.get(terms.slowdown, [])
        for mode, some in {"local": reference, **offloaded}.items():
            if some:
                _sweep(powers[service], some, terms, LINES[mode], "-", mode)
    _swept(powers)
    _save(figure, file, times, "seconds", legend=True)


def _swept(panels: dict[str, Any]) -> None:
    for axes in panels.values():
        axes.set(yscale="log", xlabel="watts of a busy core (model)")
        axes.legend(fontsize=6, ncols=2, loc="upper left")
        axes.margins(y=0.35)
    next(iter(panels.values())).set_ylabel("joules")


def _sweep(axes: Any, runs: Sequence[Run], terms: Terms, colour: str, style: str, label: str) -> None:
    joules = [
        median_of(runs, lambda run, watts=watts: energy(run, replace(terms, processor_w=watts)).total)  # type: ignore[misc]
        for watts in PROCESSOR_SWEEP_W
    ]
    axes.plot(PROCESSOR_SWEEP_W, joules, f"o{style}", color=colour, label=label)


def ranges(claims: Sequence[Claim], file: Path) -> None:
    """What the paper states and what was measured, each claim on an axis of its own."""
    from matplotlib import pyplot

    figure, rows = pyplot.subplots(
        len(claims), 1, figsize=(8, 0.95 * len(claims)), layout="constrained", facecolor="white"
    )
    for claim, axes in zip(claims, rows, strict=True):
        for place, (values, colour) in enumerate(((claim.our_range, "#3182bd"), (claim.paper_range, "#b5651d"))):
            if values:
                axes.plot([min(values), max(values)], [place, place], "o-", color=colour, linewidth=4, markersize=5)
        axes.set_yticks([0, 1], [f"ours, {claim.unit}", f"paper, {claim.unit}"], fontsize=7)
        axes.set_ylim(-0.6, 1.6)
        axes.set_title(f"{claim.claim}: {claim.verdict}", fontsize=8, loc="left")
        axes.tick_params(axis="x", labelsize=7)
        axes.grid(axis="x", alpha=0.3)
        if claim.unit == "times" and claim.our_range and max(claim.our_range) > 30:
            axes.set_xscale("log")
        else:
            everything = (0.0, *claim.our_range, *claim.paper_range)
            axes.set_xlim(min(everything) * 1.1 - 0.1, max(everything) * 1.1)
    figure.savefig(file, metadata={"Date": None})
    pyplot.close(figure)


# --- parts ------------------------------------------------------------------------------------------------------------


def _panels(services: Sequence[str], title: str, rows: int = 1) -> tuple[Any, dict[str, Any]]:
    """A panel for each service, side by side; the dict holds the first row's."""
    from matplotlib import pyplot

    width = max(7.0, 3.8 * len(services) + 1.2)
    figure, grid = pyplot.subplots(
        rows, len(services), figsize=(width, 3.4 * rows), squeeze=False, layout="constrained", facecolor="white"
    )
    figure.suptitle(title, fontsize=10)
    return figure, dict(zip(services, grid[0], strict=True))


def _stacks(axes: Any, columns: Sequence[tuple[str, Sequence[Run]]]) -> None:
    """A bar for each column: the phases of the run with the median total, so that they add up."""
    for place, (_, runs) in enumerate(columns):
        if not runs:
            continue
        bottom = 0.0
        for name, seconds in stacked(_median_run(runs)).items():
            axes.bar(place, seconds, bottom=bottom, color=COLOURS[name], label=name)
            bottom += seconds
        axes.annotate(_short(bottom), (place, bottom), ha="center", va="bottom", fontsize=7)
    axes.set_xticks(range(len(columns)), [label for label, _ in columns])
    axes.margins(y=0.12)


def _median_run(runs: Sequence[Run]) -> Run:
    middle = statistics.median_low(run.total_s for run in runs)
    return next(run for run in runs if run.total_s == middle)


def _save(figure: Any, file: Path, panels: dict[str, Any], label: str, *, legend: bool) -> None:
    from matplotlib import pyplot

    next(iter(panels.values())).set_ylabel(label)
    for axes in figure.axes:
        axes.grid(axis="y", alpha=0.3)
        axes.set_axisbelow(True)
    if legend:
        found: dict[str, Any] = {}
        for axes in panels.values():
            for handle, name in zip(*axes.get_legend_handles_labels(), strict=True):
                found.setdefault(name, handle)
        figure.legend(found.values(), found.keys(), loc="outside lower center", ncols=7, fontsize="small")
    figure.savefig(file, metadata={"Date": None})
    pyplot.close(figure)


def _total(run: Run) -> float:
    return run.total_s


def _short(seconds: float) -> str:
    return f"{seconds * 1e3:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def _size(size: int) -> str:
    return f"{size / 1e3:.0f} KB" if size < 1e6 else f"{size / 1e6:.1f} MB"
