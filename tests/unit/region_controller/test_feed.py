"""The live feed: everything first, then each change, and an end for those who do not keep up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack

import pytest

from protocol.events import AgentLost, News, Snapshot
from protocol.problems import TooManyRequests
from region_controller.feed import MAX_LISTENERS, MAX_OF_ONE_CLIENT, MAX_QUEUED, Feed

EMPTY = Snapshot((), ())


async def test_a_listener_hears_how_it_stands_and_then_what_changes() -> None:
    feed = Feed(lambda: [EMPTY])
    feed.tell(lambda: AgentLost("before anybody listened"))
    with feed.listening("phone") as events:
        assert await anext(events) == EMPTY
        feed.tell(lambda: AgentLost("one"))
        assert await anext(events) == AgentLost("one")
        feed.end()
        assert [news async for news in events] == []
    assert not feed.heard


async def test_how_it_stands_may_take_more_events_than_a_listener_may_be_behind() -> None:
    standing = [EMPTY, *(AgentLost(str(n)) for n in range(2 * MAX_QUEUED))]
    feed = Feed(lambda: standing)
    with feed.listening("phone") as events:
        feed.tell(lambda: AgentLost("news"))
        heard = [await anext(events) for _ in range(len(standing) + 1)]
    assert heard == [*standing, AgentLost("news")]


async def test_nothing_is_made_for_nobody() -> None:
    feed = Feed(lambda: [EMPTY])

    def unwanted() -> AgentLost:
        raise AssertionError("nobody listens")

    feed.tell(unwanted)
    with feed.listening("phone"):
        pass
    feed.tell(unwanted)


async def test_who_does_not_keep_up_is_ended_and_the_others_are_not() -> None:
    feed = Feed(lambda: [EMPTY])
    with feed.listening("slow") as slow, feed.listening("quick") as quick:
        heard = 0
        for number in range(MAX_QUEUED + 5):
            feed.tell(lambda number=number: AgentLost(str(number)))
            async with asyncio.timeout(5):
                await anext(quick)
            heard += 1
        assert heard == MAX_QUEUED + 5
        assert len([news async for news in slow]) == 1 + MAX_QUEUED
        assert feed.heard


async def test_places_are_shared_among_clients() -> None:
    feed = Feed(lambda: [EMPTY])
    with ExitStack() as stack:

        def listen(client: str) -> AsyncIterator[News]:
            return stack.enter_context(feed.listening(client))

        greedy = [listen("greedy") for _ in range(MAX_OF_ONE_CLIENT)]
        with pytest.raises(TooManyRequests, match="greedy listens 8 times"):
            listen("greedy")
        for number in range(MAX_LISTENERS - MAX_OF_ONE_CLIENT):
            listen(f"phone {number}")
        newcomer = listen("newcomer")
        assert [news async for news in greedy[0]] == [EMPTY], "its longest one is ended"
        assert await anext(greedy[1]) == EMPTY
        assert await anext(newcomer) == EMPTY
        feed.tell(lambda: AgentLost("one"))
        assert await anext(newcomer) == await anext(greedy[1]) == AgentLost("one")


async def test_where_nobody_has_more_than_one_place_a_newcomer_waits() -> None:
    feed = Feed(lambda: [EMPTY])
    with ExitStack() as stack:
        for number in range(MAX_LISTENERS):
            stack.enter_context(feed.listening(f"phone {number}"))
        with pytest.raises(TooManyRequests, match="64 listen"):
            stack.enter_context(feed.listening("newcomer"))
    with feed.listening("newcomer") as events:
        assert await anext(events) == EMPTY
