"""What a run costs the phone's battery, by published models of radio and processor. A model, not a measurement.

Radio: the power states of AT&T's Application Resource Optimizer (ARO, open source), with its default LTE and WiFi
profiles. Its LTE model is that of Huang et al., "A Close Examination of Performance and Power Characteristics of 4G LTE
Networks" (MobiSys 2012): base power while connected, power in proportion to throughput, and after the last packet a
long tail of discontinuous reception (DRX).
Processor: the current that the maker of a phone of the paper's years states for a busy core, times the voltage of its
battery. What the phone draws anyway, above all its screen, is left out; `Terms.base_w` adds it.

A run's energy is counted until its result is there. The tail comes afterwards and is the same whatever the run did, so
it says nothing about the store; but a phone does pay it: `Terms.tail` adds it.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from benchmarks.paper.runs import Link, Phase, Run

BITS_PER_MBIT = 1e6


def _drx_w(period_s: float) -> float:
    """Mean power of a DRX cycle: ARO's P_SHORT_DRX_PING = P_LONG_DRX_PING for T_DRX_PING, P_TAIL in between."""
    ping_s, ping_w, tail_w = 0.002, 1.68, 1.06
    return (ping_s * ping_w + (period_s - ping_s) * tail_w) / period_s


class Radio(Struct, frozen=True):
    """`tail`: seconds and watts of the states after the last packet, in order; then it is idle.

    `up_j_per_mbit`: ARO's mW/Mbps, which is energy per bit.
    """

    name: str
    promotion_s: float
    promotion_w: float
    active_w: float
    up_j_per_mbit: float
    down_j_per_mbit: float
    tail: tuple[tuple[float, float], ...]
    idle_w: float

    @property
    def tail_s(self) -> float:
        return sum(seconds for seconds, _ in self.tail)

    def quiet_j(self, seconds: float) -> float:
        """Energy of a time without packets, which begins with the last one."""
        joules = 0.0
        for lasts_s, watts in self.tail:
            joules += min(seconds, lasts_s) * watts
            seconds = max(0.0, seconds - lasts_s)
        return joules + seconds * self.idle_w


LTE = Radio(
    name="LTE, ARO's default profile",
    promotion_s=0.26,
    promotion_w=1.21,
    active_w=1.2,
    up_j_per_mbit=0.43839,
    down_j_per_mbit=0.05197,
    tail=((0.1, 1.2), (0.02, _drx_w(0.02)), (10.0, _drx_w(0.04))),
    idle_w=0.043 / 1.28 * 0.594,  # a look at the paging channel every 1.28 s
)
WIFI = Radio(
    name="WiFi, ARO's default profile",
    promotion_s=0.0,
    promotion_w=0.0,
    active_w=0.403,
    up_j_per_mbit=0.0,
    down_j_per_mbit=0.0,
    tail=((0.25, 0.403),),
    idle_w=0.02,
)
RADIOS: dict[Link, Radio] = {"wifi": WIFI, "4g": LTE}

BATTERY_V = 3.85
BIG_CORE_W = 0.655 * BATTERY_V
"""OnePlus 3 (2016, Snapdragon 820), `cpu.active.cluster1` at 2.15 GHz in its power_profile.xml: 655 mA."""
LITTLE_CORE_W = 0.356 * BATTERY_V
"""The same phone's `cpu.active.cluster0` at 1.59 GHz: 356 mA."""
SCREEN_W = (0.051 + 0.218 / 2) * BATTERY_V
"""The same phone's screen at half brightness: `screen.on`, and half of `screen.full`."""
PROCESSOR_SWEEP_W = (0.5, LITTLE_CORE_W, BIG_CORE_W, 4.0)

SOURCES = {
    "radio": "AT&T Application Resource Optimizer, default LTE and WiFi profiles (ProfileFactoryImpl)",
    "radio model": "Huang et al., A Close Examination of Performance and Power Characteristics of 4G LTE Networks",
    "processor": "OnePlus 3, power_profile.xml (cpu.active.cluster0 and 1, screen.on, screen.full), at 3.85 V",
}


class Terms(Struct, frozen=True):
    """What the model leaves open. `tail`: count the radio's tail after the last packet of the run.

    `slowdown`: how many times longer the phone's processor takes for what its client did on ours. `base_w`: what the
    phone draws anyway, for as long as the run takes.
    """

    processor_w: float = BIG_CORE_W
    tail: bool = False
    slowdown: float = 4.0
    base_w: float = 0.0


class Energy(Struct, frozen=True):
    """In joules."""

    radio: float
    processor: float
    base: float

    @property
    def total(self) -> float:
        return self.radio + self.processor + self.base


def energy(run: Run, terms: Terms) -> Energy:
    """A run on the phone itself keeps its core busy for the whole time, and its radio is idle."""
    base = run.total_s * terms.base_w
    if run.mode == "local":
        return Energy(run.total_s * RADIOS[run.link].idle_w, run.total_s * terms.processor_w, base)
    cpu_s = sum(phase.cpu_s for phase in run.phases) * terms.slowdown
    return Energy(radio_j(RADIOS[run.link], run.phases, tail=terms.tail), cpu_s * terms.processor_w, base)


def radio_j(radio: Radio, phases: Sequence[Phase], *, tail: bool) -> float:
    """The radio was idle before the first phase."""
    joules, asleep = 0.0, True
    for phase in phases:
        if asleep:
            joules += radio.promotion_s * radio.promotion_w
        joules += phase.up_bytes * 8 / BITS_PER_MBIT * radio.up_j_per_mbit
        joules += phase.down_bytes * 8 / BITS_PER_MBIT * radio.down_j_per_mbit
        joules += radio.quiet_j(phase.seconds) if phase.waits else phase.seconds * radio.active_w
        asleep = phase.waits and phase.seconds > radio.tail_s
    return joules + (radio.quiet_j(radio.tail_s) if tail else 0.0)
