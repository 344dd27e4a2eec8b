"""docs/paper.md and the README say what `results/paper.json` says: nobody writes a number by hand."""

from __future__ import annotations

import pytest

from benchmarks.paper.__main__ import TERMS, measured_before
from benchmarks.paper.claims import claims
from benchmarks.paper.page import PAGE, README, readme_rewritten, rewritten
from benchmarks.report import RESULTS


def test_the_pages_are_what_the_results_make_them() -> None:
    results = measured_before(RESULTS)
    found = claims(results.runs, TERMS)
    assert rewritten(PAGE.read_text(), results, found, TERMS) == PAGE.read_text()
    assert readme_rewritten(README.read_text(), found) == README.read_text()


def test_a_page_without_a_mark_is_refused() -> None:
    results = measured_before(RESULTS)
    with pytest.raises(ValueError, match="links"):
        rewritten(PAGE.read_text().replace("`make bench-paper`: links", ""), results, [], TERMS)
