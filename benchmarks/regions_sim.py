"""Controllers of 10 to 1,000 regions in three levels on virtual time: the shipped rules, one seed.

What decides is the code that nodes run: who is alive and whom to talk to (`relatives`), whom to ask (`hierarchy`), who
takes it (`placement`, `members`). The network is a fake with delays (10 ms to the root, 2 ms to the middle level, one
way), time is virtual. Each mesh passes through the same course:

    calm       requests spread over all regions
    skewed     nine tenths of the requests come from a tenth of the subtrees, more than these can host
    parents    a tenth of the middle level dies at one moment; skewed requests from that moment on
    root       the root dies, too; skewed requests
    returned   all of them come back; skewed requests

A request asks for one of 400 services (64 to 512 MB, every tenth 3,000 MB; some are much more popular than others);
what is started lives 30 s after it was last asked for, and is shared within its region. A region has one to three
agents of 1,000 to 4,000 MB. Dead regions take their agents and instances along.

    success        of the requests that any living region had room for, those that were placed
    hops           hand-offs until it was placed; asked: controllers that were asked; ms: the ways there and back
    stale_s        how old the word was by which the region that took it was chosen
    messages       questions and answers sent by one controller in a second
    agree_s        until nobody takes a dead controller for alive, and all siblings see each other; 30: not by then

`SIM_SIZES=10,50` and `SIM_SEED=n` give other runs; the same seed gives the same run.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import statistics
import sys
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

from benchmarks.plots import Panel, over_sizes, require_matplotlib
from benchmarks.report import finish, summary
from protocol.identifiers import parent_region
from tests.region_mesh import Outcome, RegionMesh, Service, tree

SEED = int(os.environ.get("SIM_SEED", "20260711"))
SIZES = [int(size) for size in os.environ.get("SIM_SIZES", "10,50,200,1000").split(",")]
SETTLE_S = 15.0
PHASE_S = 30.0
AGREE_WITHIN_S = 30.0
STEP_S = 0.5
REQUESTS_PER_REGION_S = 0.3
HOT_SHARE = 0.1
HOT_REQUESTS = 0.9
SERVICES = 400
SIZES_MB = (64, 128, 256, 512)
LARGE = 3_000
PHASES = ("calm", "skewed", "parents", "root", "returned")


class Load:
    """Who asks for what. A tenth of the subtrees is hot."""

    def __init__(self, mesh: RegionMesh, regions: Sequence[str]) -> None:
        self._mesh = mesh
        self._regions = list(regions)
        parents = sorted({parent_region(region) for region in regions})
        hot = set(mesh.chance.sample(parents, max(1, round(HOT_SHARE * len(parents)))))
        self._hot = [region for region in regions if parent_region(region) in hot]
        self._services = [
            Service("sha256:" + hashlib.sha256(str(i).encode()).hexdigest(), LARGE if i % 10 == 9 else SIZES_MB[i % 4])
            for i in range(SERVICES)
        ]
        self._popular = list(itertools.accumulate(1 / (rank + 1) for rank in range(SERVICES)))

    def requests(self, seconds: float, *, skewed: bool) -> list[Outcome]:
        """At their moments, in the order in which they come."""
        mesh, outcomes = self._mesh, list[Outcome]()
        end = mesh.now + seconds
        rate = REQUESTS_PER_REGION_S * len(self._regions)
        while (pause_s := mesh.chance.expovariate(rate)) and mesh.now + pause_s < end:
            mesh.run(pause_s)
            (service,) = mesh.chance.choices(self._services, cum_weights=self._popular)
            home = mesh.chance.choice(self._hot if skewed and mesh.chance.random() < HOT_REQUESTS else self._regions)
            if home in mesh.up:
                outcomes.append(mesh.ask(home, service))
        mesh.run(end - mesh.now)
        return outcomes


def told(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    placed = [one for one in outcomes if one.placed]
    possible = [one for one in outcomes if one.possible]
    handed = [one for one in placed if one.hops]
    return {
        "requests": len(outcomes),
        "possible": len(possible),
        "success": round(sum(one.placed for one in possible) / max(1, len(possible)), 4),
        "handed_off": round(len(handed) / max(1, len(placed)), 4),
        "hops": round(statistics.mean(one.hops for one in handed), 3) if handed else 0.0,
        "most_hops": max((one.hops for one in handed), default=0),
        "asked": summary([one.asked for one in handed] or [0]),
        "ms": summary([1e3 * one.waited_s for one in handed] or [0.0]),
        "stale_s": summary([one.stale_s for one in handed if one.stale_s is not None] or [0.0]),
        "classes": dict(Counter(one.warmth.name.lower() for one in placed)),
    }


def agreed_s(mesh: RegionMesh) -> float:
    """How long from now until the views are right; AGREE_WITHIN_S if they are not by then."""
    began = mesh.now
    while (mesh.wrongly_alive() or not mesh.siblings_agree()) and mesh.now - began < AGREE_WITHIN_S:
        mesh.run(STEP_S)
    return mesh.now - began


def course(size: int) -> dict[str, Any]:
    """All phases at one size."""
    regions = tree(size)
    mesh = RegionMesh(regions, SEED + size)
    result: dict[str, Any] = {"agree_s": {"started": agreed_s(mesh)}}
    mesh.run(SETTLE_S)
    load = Load(mesh, [r for r in regions if r.count("/") == 2] or regions)
    mesh.messages.clear()
    result["calm"] = told(load.requests(PHASE_S, skewed=False))
    sent = [mesh.messages[region] / PHASE_S for region in regions]
    result["messages"] = {**summary(sent), "mean": round(statistics.mean(sent), 3)}
    result["age_s"] = summary(list(mesh.ages_s()))
    result["skewed"] = told(load.requests(PHASE_S, skewed=True))
    middle = [r for r in regions if r.count("/") == 1]
    dying = mesh.chance.sample(middle, max(1, len(middle) // 10))
    for phase, dead in (("parents", dying), ("root", ["r"])):
        for region in dead:
            mesh.kill(region)
        first = load.requests(STEP_S, skewed=True)  # nobody has noticed yet
        began = mesh.now
        result["agree_s"][phase] = STEP_S + agreed_s(mesh)
        result[phase] = told([*first, *load.requests(max(STEP_S, PHASE_S - (mesh.now - began)), skewed=True)])
    for region in [*dying, "r"]:
        mesh.start(region)
    result["agree_s"]["returned"] = agreed_s(mesh)
    result["returned"] = told(load.requests(PHASE_S, skewed=True))
    return result


def plot(results: dict[int, dict[str, Any]]) -> None:
    """`regions-sim-*.svg` beside the results."""
    sizes = sorted(results)
    of = {size: results[size] for size in sizes}
    panels: list[Panel] = [
        (
            "success",
            "requests placed, of those that could be, %",
            {phase: [100 * of[s][phase]["success"] for s in sizes] for phase in PHASES},
        ),
        ("hops", "hand-offs until placed, mean", {p: [of[s][p]["hops"] for s in sizes] for p in PHASES[1:]}),
        (
            "staleness",
            "age of what decided, s (99 of 100)",
            {p: [of[s][p]["stale_s"]["p99"] for s in sizes] for p in PHASES[1:]},
        ),
        (
            "messages",
            "messages sent by a controller in a second",
            {name: [of[s]["messages"][key] for s in sizes] for name, key in (("mean", "mean"), ("most", "max"))},
        ),
    ]
    over_sizes("regions-sim", "regions", sizes, panels, least_percent=97.0)


def one_size(size: int) -> dict[str, Any]:
    began = time.process_time()
    result = course(size)
    print(
        f"{size} regions, {time.process_time() - began:.0f} s of processor time: {result}", file=sys.stderr, flush=True
    )
    return result


def main() -> None:
    require_matplotlib()
    with ProcessPoolExecutor(max_workers=os.cpu_count(), mp_context=get_context("spawn")) as pool:
        running = {size: pool.submit(one_size, size) for size in sorted(SIZES, reverse=True)}
        report({size: running[size].result() for size in SIZES})


def report(results: dict[int, dict[str, Any]]) -> None:
    plot(results)
    largest, smallest = results[max(results)], results[min(results)]
    ratios = {f"success_{phase}": float(largest[phase]["success"]) for phase in PHASES}
    ratios |= {
        "hops": float(largest["skewed"]["hops"]),
        "stale_s_p99": float(largest["skewed"]["stale_s"]["p99"]),
        "messages_per_controller_s": float(largest["messages"]["mean"]),
        "messages_per_controller_s_most": float(largest["messages"]["max"]),
        "messages_over_smallest": round(largest["messages"]["mean"] / smallest["messages"]["mean"], 3),
        "agree_s_after_deaths": max(float(largest["agree_s"][phase]) for phase in ("parents", "root")),
        "agree_s_after_return": float(largest["agree_s"]["returned"]),
    }
    finish(
        "regions-sim",
        runs=1,
        ours={str(size): result for size, result in results.items()} | {"seed": SEED},
        reference={},
        ratios=ratios,
    )


if __name__ == "__main__":
    main()
