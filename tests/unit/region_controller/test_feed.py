"""The live feed: everything first, then each change, and an end for those who do not keep up."""

from __future__ import annotations

import asyncio

import pytest

from protocol.events import AgentLost, Snapshot
from protocol.problems import TooManyRequests
from region_controller.feed import MAX_LISTENERS, MAX_QUEUED, Feed

EMPTY = Snapshot((), ())


async def test_a_listener_hears_how_it_stands_and_then_what_changes() -> None:
    feed = Feed(lambda: [EMPTY])
    feed.tell(lambda: AgentLost("before anybody listened"))
    with feed.listening() as events:
        assert await anext(events) == EMPTY
        feed.tell(lambda: AgentLost("one"))
        assert await anext(events) == AgentLost("one")
        feed.end()
        assert [news async for news in events] == []
    assert not feed.heard


async def test_how_it_stands_may_take_more_events_than_a_listener_may_be_behind() -> None:
    standing = [EMPTY, *(AgentLost(str(n)) for n in range(2 * MAX_QUEUED))]
    feed = Feed(lambda: standing)
    with feed.listening() as events:
        feed.tell(lambda: AgentLost("news"))
        heard = [await anext(events) for _ in range(len(standing) + 1)]
    assert heard == [*standing, AgentLost("news")]


async def test_nothing_is_made_for_nobody() -> None:
    feed = Feed(lambda: [EMPTY])

    def unwanted() -> AgentLost:
        raise AssertionError("nobody listens")

    feed.tell(unwanted)
    with feed.listening():
        pass
    feed.tell(unwanted)


async def test_who_does_not_keep_up_is_ended_and_the_others_are_not() -> None:
    feed = Feed(lambda: [EMPTY])
    with feed.listening() as slow, feed.listening() as quick:
        heard = 0
        for number in range(MAX_QUEUED + 5):
            feed.tell(lambda number=number: AgentLost(str(number)))
            async with asyncio.timeout(5):
                await anext(quick)
            heard += 1
        assert heard == MAX_QUEUED + 5
        assert len([news async for news in slow]) == 1 + MAX_QUEUED
        assert feed.heard


async def test_there_is_a_bound_on_listeners() -> None:
    feed = Feed(lambda: [EMPTY])
    stack = [feed.listening() for _ in range(MAX_LISTENERS)]
    for listening in stack:
        listening.__enter__()
    with pytest.raises(TooManyRequests), feed.listening():
        pass
    stack[0].__exit__(None, None, None)
    with feed.listening() as events:
        assert await anext(events) == EMPTY
