"""docs/paper.md says what `results/paper.json` says: nobody writes a number by hand."""

from __future__ import annotations

import pytest

from benchmarks.paper.__main__ import TERMS, measured_before
from benchmarks.paper.claims import claims
from benchmarks.paper.page import PAGE, rewritten
from benchmarks.report import RESULTS


def test_the_page_is_what_the_results_make_it() -> None:
    results = measured_before(RESULTS)
    assert rewritten(PAGE.read_text(), results, claims(results.runs, TERMS), TERMS) == PAGE.read_text()


def test_a_page_without_a_mark_is_refused() -> None:
    results = measured_before(RESULTS)
    with pytest.raises(ValueError, match="links"):
        rewritten(PAGE.read_text().replace("`make bench-paper`: links", ""), results, [], TERMS)
