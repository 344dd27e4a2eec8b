"""Verdicts are computed: each as a table, and all claims over runs that were made up to be like the paper's."""

from __future__ import annotations

import pytest

from benchmarks.paper import claims as judge
from benchmarks.paper.claims import Claim, Verdict, claims
from benchmarks.paper.energy import Terms
from benchmarks.paper.runs import Link, Mode, Phase, Run, Store, stacked


@pytest.mark.parametrize(
    ("least", "most", "verdict"),
    [
        (1.2, 14.5, "reproduced"),
        (1.0, 13.0, "reproduced"),
        (1.2, 40.0, "exceeded"),
        (0.9, 40.0, "not"),
        (1.2, 5.0, "not"),
    ],
)
def test_a_gain_reaches_both_ends(least: float, most: float, verdict: Verdict) -> None:
    assert judge.gain({"a": least, "b": most}, 1.1, 14.0)[0] == verdict


@pytest.mark.parametrize(
    ("least", "most", "verdict"), [(52.0, 74.0, "reproduced"), (60.0, 90.0, "exceeded"), (40.0, 90.0, "not")]
)
def test_every_share_reaches_the_least(least: float, most: float, verdict: Verdict) -> None:
    assert judge.share({"a": least, "b": most}, 50.0, 75.0)[0] == verdict


@pytest.mark.parametrize(("best", "verdict"), [(91.0, "reproduced"), (98.0, "exceeded"), (80.0, "not")])
def test_up_to_is_judged_by_the_best(best: float, verdict: Verdict) -> None:
    assert judge.up_to({"a": -5.0, "b": best}, 94.0)[0] == verdict


@pytest.mark.parametrize(
    ("worst", "verdict"), [(12.0, "exceeded"), (40.0, "reproduced"), (200.0, "reproduced"), (300.0, "not")]
)
def test_a_penalty_is_judged_by_the_worst(worst: float, verdict: Verdict) -> None:
    assert judge.penalty({"a": 1.0, "b": worst}, 33.0, 200.0)[0] == verdict


@pytest.mark.parametrize(("value", "verdict"), [(2.1, "reproduced"), (3.5, "exceeded"), (1.0, "not")])
def test_about_is_a_band(value: float, verdict: Verdict) -> None:
    assert judge.about(value, 2.0)[0] == verdict


@pytest.mark.parametrize(("percent", "verdict"), [(-3.0, "exceeded"), (8.0, "reproduced"), (60.0, "not")])
def test_the_negative_result_is_exceeded_by_not_being_slower(percent: float, verdict: Verdict) -> None:
    assert judge.slightly_slower(percent)[0] == verdict


def run(
    mode: Mode,
    start_s: float,
    *,
    upload_s: float = 0.0,
    link: Link = "wifi",
    store: Store = "lan",
    service: str = "word_count",
) -> Run:
    phases: tuple[Phase, ...] = (Phase("start", start_s, waits=True), Phase("call", 0.1, cpu_s=0.001))
    if mode == "upload":
        phases = (Phase("upload", upload_s, up_bytes=2000, cpu_s=0.001), *phases)
    return Run(service=service, mode=mode, link=link, store=store, phases=phases)


LIKE_THE_PAPER = [
    *(run("upload", 0.5, upload_s=0.2, link=link) for link in ("wifi", "4g")),
    *(run("cold", 0.45, link="wifi"), run("cold", 0.75, link="4g")),
    *(run("warm", 0.05, link="wifi"), run("warm", 0.15, link="4g")),
    run("cold", 0.4, store="colocated"),
    run("cold", 0.6, store="ireland"),
    run("cold", 0.9, store="us-east"),
    run("cold", 0.41, store="nearby"),
    Run(service="word_count", mode="local", phases=(Phase("call", 0.32),), slowdown=4.0),
]


def by_text(found: list[Claim], text: str) -> Claim:
    (claim,) = [one for one in found if text in one.claim]
    return claim


def test_runs_like_the_papers_give_its_verdicts() -> None:
    found = claims(LIKE_THE_PAPER, Terms())
    assert len(found) == 8
    assert by_text(found, "1.1 to 14").verdict == "not"  # the tiny word count is slower on 4G, as in the paper
    assert by_text(found, "75% less time").verdict == "reproduced"
    assert by_text(found, "in the cloud").verdict == "reproduced"
    assert by_text(found, "about twice").verdict == "reproduced"
    assert by_text(found, "slightly slower").verdict == "reproduced"


def test_why_names_the_cases_and_the_copy_nearby() -> None:
    cloud = by_text(claims(LIKE_THE_PAPER, Terms()), "in the cloud")
    assert cloud.ours == "40 to 100%"
    assert "word_count, us-east 100%" in cloud.why
    assert "cached at a site of the same town: word_count, nearby 2%" in cloud.why


def test_the_runs_of_other_stores_do_not_count_as_fig_2s() -> None:
    faster = [*LIKE_THE_PAPER, run("cold", 0.001, store="colocated")]
    assert by_text(claims(faster, Terms()), "1.1 to 14") == by_text(claims(LIKE_THE_PAPER, Terms()), "1.1 to 14")


def test_what_was_not_measured_is_not_reproduced() -> None:
    for claim in claims([], Terms()):
        assert (claim.verdict, claim.ours) == ("not", "not measured")


def test_the_phases_of_a_plot_add_up_to_the_run() -> None:
    edge = {"resolve": 10.0, "place": 1.0, "fetch": 100.0, "verify": 20.0, "build": 50.0, "start": 200.0, "ready": 19.0}
    whole = Run(
        service="s",
        mode="upload",
        phases=(Phase("upload", 1.0), Phase("start", 0.45, waits=True), Phase("call", 0.2)),
        edge_ms={**edge, "total": 400.0},
    )
    parts = stacked(whole)
    assert sum(parts.values()) == pytest.approx(whole.total_s)
    assert parts["network"] == pytest.approx(0.05)
    assert parts["fetch"] == pytest.approx(0.12)
