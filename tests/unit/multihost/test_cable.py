"""The cable's rule: when a frame arrives, and which frames are lost."""

from __future__ import annotations

from tests.multihost.cable import Direction, Line

MS = 1_000_000
FRAME = bytes(1250)  # 10 kbit: 1 ms at 10 Mbit/s


def test_a_frame_arrives_after_its_sending_time_and_the_delay() -> None:
    direction = Direction(Line(delay_ms=20, rate_mbit=10))
    assert direction.enter(0, FRAME, chance=0.5)
    assert direction.next_arrival() == 21 * MS
    assert direction.leave(21 * MS - 1) == []
    assert direction.leave(21 * MS) == [FRAME]
    assert direction.next_arrival() is None


def test_frames_wait_for_those_before_them() -> None:
    direction = Direction(Line(delay_ms=0, rate_mbit=10))
    direction.enter(0, FRAME, chance=0.5)
    direction.enter(0, FRAME[:-1], chance=0.5)
    assert direction.leave(MS) == [FRAME]
    assert direction.leave(2 * MS) == [FRAME[:-1]]


def test_a_full_queue_drops_and_takes_again_when_it_has_emptied() -> None:
    direction = Direction(Line(delay_ms=0, rate_mbit=10, queue_ms=2))
    assert [direction.enter(0, FRAME, chance=0.5) for _ in range(4)] == [True, True, True, False]
    assert direction.enter(MS, FRAME, chance=0.5)


def test_loss_takes_its_share() -> None:
    direction = Direction(Line(delay_ms=0, loss=0.25))
    assert [direction.enter(0, FRAME, chance=n / 100) for n in range(100)].count(False) == 25


def test_the_way_back_may_have_a_rate_of_its_own() -> None:
    line = Line(delay_ms=20, rate_mbit=50, back_mbit=300, queue_ms=80)
    assert line.back == Line(delay_ms=20, rate_mbit=300, back_mbit=300, queue_ms=80)
    assert Line(delay_ms=20, rate_mbit=50).back.rate_mbit == 50
