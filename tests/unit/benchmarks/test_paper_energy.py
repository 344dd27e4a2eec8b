"""The energy model against sums done by hand from the coefficients of its sources."""

from __future__ import annotations

import pytest

from benchmarks.paper.energy import BIG_CORE_W, LTE, WIFI, Terms, energy, radio_j
from benchmarks.paper.runs import Phase, Run

NO_PROCESSOR = Terms(processor_w=0.0)
TAIL_J = 0.1 * 1.2 + 0.02 * 1.122 + 10 * 1.091
MBIT = 125_000


def test_an_upload_over_lte_is_promotion_base_and_bits() -> None:
    upload = [Phase("upload", 2.0, up_bytes=10 * MBIT)]
    assert radio_j(LTE, upload, tail=False) == pytest.approx(0.26 * 1.21 + 2.0 * 1.2 + 10 * 0.43839)


def test_the_tail_after_the_last_packet_is_counted_once_and_on_request() -> None:
    phases = [Phase("upload", 1.0), Phase("call", 1.0)]
    on, off = radio_j(LTE, phases, tail=True), radio_j(LTE, phases, tail=False)
    assert on - off == pytest.approx(TAIL_J)
    assert radio_j(WIFI, phases, tail=True) - radio_j(WIFI, phases, tail=False) == pytest.approx(0.25 * 0.403)


def test_waiting_costs_the_states_that_the_radio_falls_through() -> None:
    promotion = 0.26 * 1.21
    assert radio_j(LTE, [Phase("start", 0.05, waits=True)], tail=False) == pytest.approx(promotion + 0.05 * 1.2)
    assert radio_j(LTE, [Phase("start", 5.12, waits=True)], tail=False) == pytest.approx(
        promotion + 0.1 * 1.2 + 0.02 * 1.122 + 5 * 1.091
    )
    assert radio_j(WIFI, [Phase("start", 5.25, waits=True)], tail=False) == pytest.approx(0.25 * 0.403 + 5 * 0.02)


def test_a_radio_that_fell_asleep_while_it_waited_is_promoted_again() -> None:
    waits = [Phase("start", 11.0, waits=True)]
    once = radio_j(LTE, waits, tail=False)
    assert radio_j(LTE, [*waits, Phase("call", 0.0)], tail=False) - once == pytest.approx(0.26 * 1.21)
    short = [Phase("start", 9.0, waits=True), Phase("call", 0.0)]
    assert radio_j(LTE, short, tail=False) == pytest.approx(radio_j(LTE, short[:1], tail=False))


def test_the_phones_processor_takes_longer_for_what_ours_did() -> None:
    run = Run(service="s", mode="warm", link="wifi", phases=(Phase("call", 0.5, cpu_s=0.02),))
    assert energy(run, Terms(processor_w=2.0, slowdown=5.0)).processor == pytest.approx(0.02 * 5 * 2)


def test_on_the_phone_itself_a_core_is_busy_and_the_radio_idles() -> None:
    run = Run(service="s", mode="local", phases=(Phase("call", 3.0),))
    spent = energy(run, Terms())
    assert spent.processor == pytest.approx(3 * BIG_CORE_W)
    assert spent.total == pytest.approx(3 * BIG_CORE_W + 3 * 0.02)
    assert energy(run, NO_PROCESSOR).processor == 0


def test_what_is_drawn_anyway_counts_for_as_long_as_the_run_takes() -> None:
    run = Run(service="s", mode="cold", phases=(Phase("start", 2.0, waits=True), Phase("call", 1.0)))
    assert energy(run, Terms(base_w=0.6)).total - energy(run, Terms()).total == pytest.approx(3 * 0.6)
