"""What the paper claims, and whether these runs bear it out. Pure: every verdict is computed from what was measured.

`exceeded` means better for whom the store serves than what the paper found: faster, less energy, less of a penalty.
The paper gives ranges over its services and links, so ours are ranges as well, from the medians of each combination.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from benchmarks.paper.energy import SCREEN_W, Terms, energy
from benchmarks.paper.runs import LINKS, Mode, Run, Store, median_of, of, services_of

Verdict = Literal["reproduced", "exceeded", "not"]
SMALL_SERVICES = ("word_count", "face_detection")
HEAVY_SERVICES = ("object_detection", "face_detection", "word_count")
"""The paper's case for local execution is a heavy service: the first of these that was measured stands for it."""
CLOUD: tuple[Store, ...] = ("ireland", "us-east")
TOLERANCE = 0.1
"""A paper's figure is met when ours is within a tenth of it: its own were read off plots by its readers, too."""
BAND = 1.5
"""`about` and `nearly` in the paper: within this factor."""
POINTS = 5.0
"""The same for savings, in points of percent."""
SLIGHTLY = 25.0
"""In percent."""


class Claim(Struct, frozen=True, kw_only=True):
    """`paper_range`, `our_range`: what is compared, least and most, in `unit`; empty where nothing was measured."""

    claim: str
    paper: str
    ours: str
    verdict: Verdict
    why: str
    unit: str
    paper_range: tuple[float, ...]
    our_range: tuple[float, ...]


Cases = Mapping[str, float]
"""A value for each combination, named such as `word_count, cold, wifi`."""
Value = Callable[[Run], float]


# --- verdicts ---------------------------------------------------------------------------------------------------------

Judgement = tuple[Verdict, str]
"""And what decided it."""


def gain(cases: Cases, least: float, most: float) -> Judgement:
    """For what is better the more it is. Every case must reach `least`, the best one `most`; beyond it: exceeded."""
    worst, best = min(cases.values()), max(cases.values())
    if worst < max(1.0, least * (1 - TOLERANCE)):  # no tolerance makes slower out of faster
        return "not", f"The least is below {_number(least)}."
    if best < most * (1 - TOLERANCE):
        return "not", f"The most is below {_number(most)}."
    return _beyond(best > most * (1 + TOLERANCE), f"The least is about {_number(least)} or more, the most")


def share(cases: Cases, least: float, most: float) -> Judgement:
    """For savings in percent: every case must reach `least`; beyond `most` in any: exceeded."""
    if min(cases.values()) < least - POINTS:
        return "not", f"The least saves less than {_number(least)}%."
    return _beyond(
        max(cases.values()) > min(100.0, most + POINTS), f"All save about {_number(least)}% or more, the most"
    )


def up_to(cases: Cases, most: float) -> Judgement:
    """For `up to most percent`: the best case counts."""
    best = max(cases.values())
    if best < most - POINTS:
        return "not", f"The most is below {_number(most)}%."
    return _beyond(best > most, "The most")


def penalty(cases: Cases, least: float, most: float) -> Judgement:
    """For what is better the less it is: all below `least` is exceeded, any above `most` is not the paper's."""
    worst = max(cases.values())
    if worst > most * (1 + TOLERANCE):
        return "not", f"The worst is above {_number(most)}%."
    if worst < least * (1 - TOLERANCE):
        return "exceeded", f"Even the worst is below {_number(least)}%."
    return "reproduced", "The worst is in the paper's range."


def about(value: float, paper: float) -> Judgement:
    """For one factor by which we are better."""
    if value < paper / BAND:
        return "not", f"Less than {_number(paper)} / {BAND}."
    return _beyond(value > paper * BAND, "It")


def slightly_slower(percent: float) -> Judgement:
    """For the paper's negative result: not slower at all is exceeded, slower by far is another result."""
    if percent <= 0:
        return "exceeded", "It is not slower here."
    if percent <= SLIGHTLY:
        return "reproduced", "It is slower here, too."
    return "not", f"It is slower by more than {_number(SLIGHTLY)}%."


def _beyond(beyond: bool, subject: str) -> Judgement:
    return (
        ("exceeded", f"{subject} is beyond the paper's.")
        if beyond
        else ("reproduced", f"{subject} is near the paper's.")
    )


# --- the claims -------------------------------------------------------------------------------------------------------


def claims(runs: Sequence[Run], terms: Terms) -> list[Claim]:
    """All of the paper's, in its order. `terms`: with which the energy of the runs is modelled."""
    offloaded = [run for run in runs if run.store == "lan"]  # Fig. 2 and 3: one store, two links
    small = [run for run in offloaded if run.service in SMALL_SERVICES]
    return [
        startup_claim(offloaded),
        energy_claim(offloaded, terms),
        warm_latency_claim(small),
        warm_energy_claim(small, terms),
        cloud_claim(runs),
        local_latency_claim(offloaded, terms),
        local_energy_claim(offloaded, terms),
        tiny_cold_claim(offloaded),
    ]


def startup_claim(runs: Sequence[Run]) -> Claim:
    cases = compared(runs, "upload", ("cold", "warm"), lambda run: run.startup_s, _times)
    text = "the store starts a service 1.1 to 14 times faster than uploading it does"
    return _claim(text, (1.1, 14.0), "times", cases, lambda: gain(cases, 1.1, 14.0), _what_uploading_costs(runs))


def energy_claim(runs: Sequence[Run], terms: Terms) -> Claim:
    def cases_with(terms: Terms) -> Cases:
        return compared(runs, "upload", ("cold", "warm"), _joules(terms), _saved)

    cases = cases_with(terms)
    text = "the store saves up to 94% of the energy of uploading"
    return _claim(text, (94.0,), "%", cases, lambda: up_to(cases, 94.0), _otherwise(cases_with, terms, "%"))


def warm_latency_claim(runs: Sequence[Run]) -> Claim:
    cases = compared(runs, "cold", ("warm",), lambda run: run.total_s, _saved)
    text = "for the two small services, warm takes 50 to 75% less time than cold"
    return _claim(text, (50.0, 75.0), "%", cases, lambda: share(cases, 50.0, 75.0))


def warm_energy_claim(runs: Sequence[Run], terms: Terms) -> Claim:
    def cases_with(terms: Terms) -> Cases:
        return compared(runs, "cold", ("warm",), _joules(terms), _saved)

    cases = cases_with(terms)
    text = "for the two small services, warm takes 80 to 95% less energy than cold"
    remark = f"{_what_warm_costs(runs, terms)} {_otherwise(cases_with, terms, '%')}" if cases else ""
    return _claim(text, (80.0, 95.0), "%", cases, lambda: share(cases, 80.0, 95.0), remark)


def cloud_claim(runs: Sequence[Run]) -> Claim:
    cases = farther(runs, CLOUD)
    nearby = farther(runs, ("nearby",))
    remark = _what_fetching_costs(runs) if cases else ""
    remark += f" With a copy cached at a site of the same town: {_spread(nearby, '%')}." if nearby else ""
    text = "a store in the cloud makes a cold start 33 to 200% slower than one beside the agent"
    return _claim(text, (33.0, 200.0), "%", cases, lambda: penalty(cases, 33.0, 200.0), remark)


def local_latency_claim(runs: Sequence[Run], terms: Terms) -> Claim:
    cases = local_over_warm(runs, lambda run: run.total_s, terms.slowdown)
    everyone = local_over_warm(runs, lambda run: run.total_s, terms.slowdown, every=True)
    text = "running it on the phone takes about twice as long as offloading it"
    remark = f"On a core {_number(terms.slowdown)} times slower than ours: {_named(everyone, ' times')}."
    return _claim(text, (2.0,), "times", cases, lambda: about(_only(cases), 2.0), remark if cases else "")


def local_energy_claim(runs: Sequence[Run], terms: Terms) -> Claim:
    def cases_with(terms: Terms) -> Cases:
        return local_over_warm(runs, _joules(terms), terms.slowdown)

    cases = cases_with(terms)
    text = "running it on the phone takes nearly six times the energy"
    remark = _otherwise(cases_with, terms, " times")
    return _claim(text, (6.0,), "times", cases, lambda: about(_only(cases), 6.0), remark)


def tiny_cold_claim(runs: Sequence[Run]) -> Claim:
    tiny = of(runs, service="word_count", link="4g")
    cases = compared(tiny, "upload", ("cold",), lambda run: run.total_s, lambda base, ours: -_saved(base, ours))
    text = "a tiny word count, cold, on 4G, is slightly slower than uploading it"
    return _claim(text, (0.0, SLIGHTLY), "%", cases, lambda: slightly_slower(_only(cases)))


# --- cases ------------------------------------------------------------------------------------------------------------


def compared(
    runs: Sequence[Run], base: Mode, modes: Sequence[Mode], value: Value, relate: Callable[[float, float], float]
) -> Cases:
    """`relate(base, mode)` of the medians, for each service, mode and link where both were measured."""
    cases = {}
    for service in services_of(runs):
        for mode in modes:
            for link in LINKS:
                before = of(runs, service=service, mode=base, link=link)
                after = of(runs, service=service, mode=mode, link=link)
                if before and after:
                    cases[f"{service}, {mode}, {link}"] = relate(median_of(before, value), median_of(after, value))
    return cases


def farther(runs: Sequence[Run], stores: Sequence[Store]) -> Cases:
    """By how many percent a cold start on WiFi takes longer with the archive at `stores` than beside the agent."""
    cases = {}
    for service in services_of(runs):
        cold = of(runs, service=service, mode="cold", link="wifi")
        beside = of(cold, store="colocated")
        for store in stores:
            if beside and (there := of(cold, store=store)):
                before, after = (median_of(some, lambda run: run.total_s) for some in (beside, there))
                cases[f"{service}, {store}"] = 100 * (after / before - 1)
    return cases


def local_over_warm(runs: Sequence[Run], value: Value, slowdown: float, *, every: bool = False) -> Cases:
    """Of the heaviest service that was measured (or `every`): on a phone with that slowdown, over warm on WiFi."""
    cases = {}
    for service in HEAVY_SERVICES:
        local = [run for run in of(runs, service=service, mode="local") if run.slowdown == slowdown]
        warm = of(runs, service=service, mode="warm", link="wifi")
        if local and warm:
            cases[service] = median_of(local, value) / median_of(warm, value)
            if not every:
                break
    return cases


def _joules(terms: Terms) -> Value:
    return lambda run: energy(run, terms).total


def _times(base: float, ours: float) -> float:
    return base / ours


def _saved(base: float, ours: float) -> float:
    """In percent of `base`."""
    return 100 * (1 - ours / base)


def _only(cases: Cases) -> float:
    (value,) = cases.values()
    return value


# --- words ------------------------------------------------------------------------------------------------------------


def _claim(
    text: str, paper: tuple[float, ...], unit: str, cases: Cases, judge: Callable[[], Judgement], remark: str = ""
) -> Claim:
    """Without any case the verdict is `not`: what was not measured was not reproduced."""
    if not cases:
        return Claim(
            claim=text,
            paper=_range(paper, unit),
            ours="not measured",
            verdict="not",
            why="None of its cases was measured in this run.",
            unit=unit,
            paper_range=paper,
            our_range=(),
        )
    verdict, because = judge()
    return Claim(
        claim=text,
        paper=_range(paper, unit),
        ours=_range((min(cases.values()), max(cases.values())), unit),
        verdict=verdict,
        why=" ".join(part for part in (because, f"{_spread(cases, _suffix(unit))}.", remark) if part),
        unit=unit,
        paper_range=paper,
        our_range=(min(cases.values()), max(cases.values())),
    )


def _suffix(unit: str) -> str:
    return unit if unit == "%" else f" {unit}"


def _range(values: tuple[float, ...], unit: str) -> str:
    ends = dict.fromkeys(_number(value) for value in values)
    return f"{' to '.join(ends)}{_suffix(unit)}"


def _number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 10 else f"{value:.2g}"


def _named(cases: Cases, suffix: str) -> str:
    return "; ".join(f"{name} {_number(value)}{suffix}" for name, value in cases.items())


def _spread(cases: Cases, suffix: str) -> str:
    """The least and the most, by name."""
    least, most = min(cases, key=lambda name: cases[name]), max(cases, key=lambda name: cases[name])
    return _named({name: cases[name] for name in (least, most)}, suffix)


def _what_uploading_costs(runs: Sequence[Run]) -> str:
    """All that a cold start can save is the sending of the archive."""
    parts = []
    for service in services_of(runs):
        for link in LINKS:
            if uploads := of(runs, service=service, mode="upload", link=link):
                sent = median_of(uploads, lambda run: sum(p.seconds for p in run.phases if p.name == "upload"))
                whole = median_of(uploads, lambda run: run.startup_s)
                parts.append(f"{service}, {link}, {sent * 1e3:.0f} of {whole * 1e3:.0f} ms")
    return f"Sending the archive, all that a cold start can save, takes: {'; '.join(parts)}." if parts else ""


def _what_fetching_costs(runs: Sequence[Run]) -> str:
    parts = []
    for service in services_of(runs):
        for store in CLOUD:
            if there := of(runs, service=service, mode="cold", link="wifi", store=store):
                fetch = median_of(there, lambda run: run.edge_ms.get("fetch", 0.0))
                whole = median_of(there, lambda run: run.total_s * 1e3)
                parts.append(f"{service}, {store}, {fetch:.0f} of {whole:.0f} ms")
    return f"Fetching from there takes: {'; '.join(parts)}."


def _what_warm_costs(runs: Sequence[Run], terms: Terms) -> str:
    parts = []
    for service in services_of(runs):
        for link in LINKS:
            if warm := of(runs, service=service, mode="warm", link=link):
                whole = median_of(warm, lambda run: energy(run, terms).total)
                client = median_of(warm, lambda run: energy(run, terms).processor)
                parts.append(f"{service}, {link}, {100 * client / whole:.0f}% of {whole:.2g} J")
    return f"Of what warm still takes, the client's own work is: {'; '.join(parts)}."


def _otherwise(cases_with: Callable[[Terms], Cases], terms: Terms, suffix: str) -> str:
    """What the verdict does not count: with the radio's tail, and with the screen on."""
    tail, screen = cases_with(replace(terms, tail=True)), cases_with(replace(terms, base_w=SCREEN_W))
    if not tail:
        return ""
    return f"With the radio's tail: {_spread(tail, suffix)}. With the screen on: {_spread(screen, suffix)}."
