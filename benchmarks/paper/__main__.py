"""Measure, judge, draw: `make bench-paper`, or `make bench-paper ARGS=--quick` for a look that keeps no results.

With `--quick`, each start is measured once, without Ireland, and everything goes to `build/paper/` instead of
`benchmarks/results/`, docs/paper.md and the README. `--again` judges and draws what was measured last, and measures
nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
import structlog

from benchmarks.paper.cases import BUILD, Case, cases
from benchmarks.paper.claims import Claim, claims
from benchmarks.paper.energy import SOURCES, Terms
from benchmarks.paper.experiments import Plan, Results, experiment
from benchmarks.paper.page import PAGE, README, readme_rewritten, rewritten
from benchmarks.paper.plots import all_figures
from benchmarks.plots import require_matplotlib
from benchmarks.report import RESULTS, finish

TERMS = Terms()
QUICK = Plan(repeats=1, slowdowns=(4.0,), stores=("colocated", "us-east", "nearby"))


def keep(results: Results, found: Sequence[Claim], folder: Path) -> None:
    """`paper.json` as all benchmarks, and what it needs to be judged again: the runs themselves."""
    finish(
        "paper",
        runs=results.repeats,
        ours=msgspec.to_builtins(results),
        reference={"energy_model": {"terms": msgspec.to_builtins(TERMS), "sources": SOURCES}},
        ratios={},
        claims=[msgspec.to_builtins(claim) for claim in found],
        folder=folder,
    )


def measured_before(folder: Path) -> Results:
    kept = msgspec.json.decode((folder / "paper.json").read_bytes())
    return msgspec.convert(kept["ours"], Results)


async def measured(wanted: Sequence[Case], plan: Plan) -> Results:
    """SIGTERM ends it as Ctrl-C does: nodes, engine and namespaces are removed."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await experiment(wanted, plan)


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--quick", action="store_true")
    arguments.add_argument("--again", action="store_true")
    arguments.add_argument("--repeats", type=int, default=Plan().repeats)
    arguments.add_argument("--services", nargs="+", help="only these")
    given = arguments.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    require_matplotlib()
    folder = BUILD / "paper" if given.quick else RESULTS
    plan = QUICK if given.quick else Plan(repeats=given.repeats)
    began = time.monotonic()
    if given.again:
        results = measured_before(folder)
    else:
        wanted = [case for case in cases() if not given.services or case.name in given.services]
        results = asyncio.run(measured(wanted, plan))
    found = claims(results.runs, TERMS)
    keep(results, found, folder)
    all_figures(results, found, TERMS, folder)
    if not given.quick:
        PAGE.write_text(rewritten(PAGE.read_text(), results, found, TERMS))
        README.write_text(readme_rewritten(README.read_text(), found))
    for claim in found:
        print(f"{claim.verdict}: {claim.claim}: {claim.ours}. {claim.why}", file=sys.stderr)
    print(f"{time.monotonic() - began:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
