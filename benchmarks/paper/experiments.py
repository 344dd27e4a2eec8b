"""The experiments, in turn: Fig. 2 (and with it Fig. 3, which is computed), Fig. 4a, Fig. 4b."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from msgspec import Struct

from benchmarks.paper.cases import Case, check_labels
from benchmarks.paper.links import Measured
from benchmarks.paper.local import Calibrated, calibrate, image_of, installed
from benchmarks.paper.phone import Order
from benchmarks.paper.runs import LINKS, Link, Run, Store
from benchmarks.paper.stage import SHARES_CHUNKS, Stage, Variant, running_stage

FAR: tuple[Store, ...] = ("colocated", "ireland", "us-east", "nearby")
"""Fig. 4a beside the store in the LAN, which Fig. 2 has."""


OFTEN = 3


class Results(Struct, frozen=True, kw_only=True):
    """`archive_bytes`: of the lean archives, which are sent.

    `first_build_s`: what the very first build of each took, before its layers were in the engine's cache.
    """

    repeats: int
    links: dict[str, Measured]
    throttles: list[Calibrated]
    archive_bytes: dict[str, int]
    first_build_s: dict[str, float]
    runs: list[Run]


class Plan(Struct, frozen=True):
    """`repeats` of what starts a service; warm and local calls, which are short, OFTEN as often."""

    repeats: int = 3
    slowdowns: tuple[float, ...] = (2.0, 4.0, 8.0)
    stores: tuple[Store, ...] = FAR


async def experiment(cases: Sequence[Case], plan: Plan) -> Results:
    runs: list[Run] = []
    first_builds: dict[str, float] = {}
    images: dict[str, tuple[str, int]] = {}
    async with running_stage(cases) as there:
        for case in cases:
            first_builds[case.name] = await first_build(there, case)
            for _ in range(plan.repeats):
                for link in LINKS:
                    runs += _told([await upload(there, case, link)])
                    started, image = await cold_and_warm(there, case, link, warm=OFTEN)
                    images[case.name] = image
                    runs += _told(started)
        async with there.far_sites():
            for case in cases:
                for _ in range(plan.repeats):
                    for store in plan.stores:
                        runs += _told([await cold_from(there, case, store)])
        throttles = [await calibrate(there, slowdown) for slowdown in plan.slowdowns]
        for case in cases:
            async with installed(there, case, *images[case.name]) as service:
                for _ in range(OFTEN * plan.repeats):
                    runs += _told([await service.run(throttle) for throttle in throttles])
        links = dict(there.links)
        sizes = {case.name: there.size(case) for case in cases}
    return Results(
        repeats=plan.repeats,
        links=links,
        throttles=throttles,
        archive_bytes=sizes,
        first_build_s=first_builds,
        runs=runs,
    )


async def first_build(there: Stage, case: Case) -> float:
    """Not a run: with it the engine has the layers that all variants of the service share. Checks what it sees."""
    variant = there.variant(case)
    order = Order(do="upload", archive=str(variant.archive), record=variant.record, service=variant.digest)
    run, report = await there.run(case, order, "upload", "wifi", "lan")
    if case.labels:
        photo = f"@{there.body_of(case)}"
        curl = ("curl", "-sS", "-H", "Accept: application/json", "--data-binary", photo, report.url + case.path)
        check_labels(case, await there.bed.run(there.bed.host("wifi", "phone"), *curl))
    await there.remove("wifi", report)
    return run.edge_ms["build"] / 1e3


async def upload(there: Stage, case: Case, link: Link) -> Run:
    """Traditional offloading: the phone brings the archive along."""
    variant = there.variant(case)
    order = Order(do="upload", archive=str(variant.archive), record=variant.record, service=variant.digest)
    run, report = await there.run(case, order, "upload", link, "lan")
    await there.remove(link, report)
    return run


async def cold_and_warm(there: Stage, case: Case, link: Link, warm: int) -> tuple[list[Run], tuple[str, int]]:
    """From the store of the LAN: a cold start, then as many warm ones. And the image that ran, with its port."""
    variant = await published(there, case, "lan")
    order = Order(do="start", service=variant.digest)
    cold, report = await there.run(case, order, "cold", link, "lan")
    again = [await there.run(case, order, "warm", link, "lan") for _ in range(warm)]
    image = await image_of(there, report.instance)
    # Each start gave a lease of its own: the instance lives until the last of them is given up.
    for holder in (report, *(warm_report for _, warm_report in again)):
        await there.remove(link, holder)
    return [cold, *(run for run, _ in again)], (image, report.container_port)


async def cold_from(there: Stage, case: Case, store: Store) -> Run:
    variant = await published(there, case, store)
    run, report = await there.run(case, Order(do="start", service=variant.digest), "cold", "wifi", store)
    await there.remove("wifi", report)
    return run


async def published(there: Stage, case: Case, store: Store) -> Variant:
    """A variant at the store, of which the edge has nothing yet (unless the store is the edge).

    An edge that was started anew for this has served another request before the run: the first of all is not measured.
    """
    if there.size(case) > SHARES_CHUNKS:
        await there.forget_content()
        await cold_from(there, there.tiny, store)
    variant = there.variant(case)
    await there.publish(variant, store)
    return variant


def _told(runs: list[Run]) -> list[Run]:
    """The same, and a line for each to who waits."""
    for run in runs:
        words = [run.service, run.mode, run.link, run.store, f"{run.total_s:.3f} s"]
        print(" ".join(words), {phase.name: round(phase.seconds, 3) for phase in run.phases}, file=sys.stderr)
    return runs
