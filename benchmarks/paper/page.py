"""docs/paper.md and the README: what lies between two marks is written by the benchmark, the rest by people."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from benchmarks.paper.claims import Claim
from benchmarks.paper.energy import Terms, energy
from benchmarks.paper.experiments import Results
from benchmarks.paper.runs import LINKS, MODES, STORES, median_of, of, services_of
from tests.multihost.testbed import REPOSITORY

PAGE = REPOSITORY / "docs" / "paper.md"
README = REPOSITORY / "README.md"
BEGIN = "<!-- written by `make bench-paper`: {} -->"
END = "<!-- end -->"


def rewritten(page: str, results: Results, claims: Sequence[Claim], terms: Terms) -> str:
    """The page with its generated parts made anew. Raises ValueError where a mark is missing."""
    parts = {
        "claims": claim_table(claims),
        "links": link_table(results),
        "times": time_table(results, terms),
        "stores": store_table(results),
        "local": local_table(results),
    }
    for name, lines in parts.items():
        page = _with_part(page, name, lines)
    return page


def readme_rewritten(readme: str, claims: Sequence[Claim]) -> str:
    """The README with its short table of claims made anew. Raises ValueError where a mark is missing."""
    return _with_part(readme, "verdicts", verdict_table(claims))


def _with_part(page: str, name: str, lines: Iterable[str]) -> str:
    mark = BEGIN.format(name)
    before, begin, rest = page.partition(mark)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page has no part {mark} ... {END}")
    return "\n".join([before + begin, *lines, end]) + after


def claim_table(claims: Sequence[Claim]) -> Iterator[str]:
    yield from _head("the paper's claim", "paper", "ours", "verdict", "why")
    for claim in claims:
        yield _row(claim.claim, claim.paper, claim.ours, f"**{claim.verdict}**", claim.why)


def verdict_table(claims: Sequence[Claim]) -> Iterator[str]:
    yield from _head("the paper says that", "there", "here", "verdict")
    for claim in claims:
        yield _row(claim.claim, claim.paper, claim.ours, claim.verdict)


def link_table(results: Results) -> Iterator[str]:
    yield from _head("link", "round trip, ms: target", "measured", "up, Mbit/s: target", "measured", "down", "measured")
    for name, link in results.links.items():
        target, seen = link.target, link.measured
        pairs = ((target.rtt_ms, seen.rtt_ms), (target.up_mbit, seen.up_mbit), (target.down_mbit, seen.down_mbit))
        yield _row(name, *(f"{value:.0f}" if value >= 10 else f"{value:.2g}" for pair in pairs for value in pair))


def time_table(results: Results, terms: Terms) -> Iterator[str]:
    """Medians of Fig. 2 and 3."""
    yield from _head("service", "link", "mode", "startup, ms", "until the result, ms", "energy, J (model)")
    runs = of(results.runs, store="lan")
    for service in services_of(runs):
        for link in LINKS:
            for mode in MODES[:3]:
                some = of(runs, service=service, link=link, mode=mode)
                if some:
                    startup, total = (
                        median_of(some, lambda run: run.startup_s),
                        median_of(some, lambda run: run.total_s),
                    )
                    joules = median_of(some, lambda run: energy(run, terms).total)
                    yield _row(service, link, mode, f"{startup * 1e3:.0f}", f"{total * 1e3:.0f}", f"{joules:.2g}")


def store_table(results: Results) -> Iterator[str]:
    """Medians of Fig. 4a, and what of it is fetching."""
    yield from _head("service", *STORES)
    cold = of(results.runs, mode="cold", link="wifi")
    for service in services_of(cold):
        cells = []
        for store in STORES:
            some = of(cold, service=service, store=store)
            if not some:
                cells.append("")
                continue
            total = median_of(some, lambda run: run.total_s * 1e3)
            fetch = median_of(some, lambda run: run.edge_ms.get("fetch", 0.0))
            cells.append(f"{total:.0f} ms, fetch {fetch:.0f}")
        yield _row(service, *cells)


def local_table(results: Results) -> Iterator[str]:
    """Medians of Fig. 4b."""
    throttles = results.throttles
    yield from _head("service", *(f"{t.target:g} times slower (calibrated: {t.measured:g})" for t in throttles))
    local = of(results.runs, mode="local")
    for service in services_of(local):
        at = [[run for run in of(local, service=service) if run.slowdown == t.target] for t in throttles]
        yield _row(
            service, *(f"{median_of(some, lambda run: run.total_s * 1e3):.0f} ms" if some else "" for some in at)
        )


def _head(*cells: str) -> Iterator[str]:
    yield _row(*cells)
    yield _row(*("---" for _ in cells))


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
