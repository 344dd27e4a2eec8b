"""Event streams, cut at every place where a network may cut them."""

from __future__ import annotations

import pytest

from client.sse import MAX_EVENT_BYTES, Event, EventParser
from protocol.problems import TooLarge

STREAM = (
    b': hello\n\nevent: progress\r\ndata: {"a":\r\ndata: 1}\r\n\r\ndata:plain\n\nid: 7\nevent: result\ndata: {}\n\n'
)
EVENTS = [Event("progress", b'{"a":\n1}'), Event("message", b"plain"), Event("result", b"{}")]


@pytest.mark.parametrize("step", [1, 2, 3, 7, len(STREAM)])
def test_events_do_not_depend_on_how_the_bytes_arrive(step: int) -> None:
    parser = EventParser()
    assert [e for at in range(0, len(STREAM), step) for e in parser.feed(STREAM[at : at + step])] == EVENTS


def test_an_unfinished_event_is_none() -> None:
    assert EventParser().feed(b"event: result\ndata: {}\n") == []


def test_a_line_without_end_is_refused() -> None:
    with pytest.raises(TooLarge):
        EventParser().feed(b"data: " + b"x" * (MAX_EVENT_BYTES + 1))


def test_an_event_without_end_is_refused() -> None:
    line = b"data: " + b"x" * 1000 + b"\n"
    with pytest.raises(TooLarge):
        EventParser().feed(line * (MAX_EVENT_BYTES // 1000 + 2))
