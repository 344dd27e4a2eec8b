"""The alive endpoint as the paper's services call it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest

from agent.alive import MAX_BODY, PATH, running_alive_endpoint
from protocol.problems import DiskFull

ADDRESSES = {"mine": frozenset({"127.0.0.1"}), "other": frozenset({"172.18.0.9"})}


@asynccontextmanager
async def endpoint() -> AsyncIterator[tuple[str, list[str]]]:
    heard: list[str] = []

    async def addresses_of(instance: str) -> frozenset[str] | None:
        return ADDRESSES.get(instance)

    async with running_alive_endpoint(0, addresses_of, heard.append) as alive:
        await alive.listen_on("127.0.0.1")
        yield f"http://127.0.0.1:{alive.port_on('127.0.0.1')}{PATH}", heard


@pytest.mark.parametrize("method", ["PUT", "POST"])
async def test_an_instance_says_that_it_lives(method: str) -> None:
    async with endpoint() as (url, heard), aiohttp.request(method, url, data={"name": "mine"}) as answer:
        assert answer.status == 200
        assert heard == ["mine"]


@pytest.mark.parametrize(
    ("form", "status"),
    [
        ({"name": "nobody"}, 404),
        ({"name": "other"}, 403),
        ({"name": ""}, 400),
        ({"title": "mine"}, 400),
        ({"name": "x" * (MAX_BODY + 1)}, 413),
    ],
)
async def test_anything_else_is_refused_and_not_heard(form: dict[str, str], status: int) -> None:
    async with endpoint() as (url, heard), aiohttp.request("PUT", url, data=form) as answer:
        assert answer.status == status
        assert answer.content_type == "application/problem+json"
        assert heard == []


async def test_a_gateway_that_cannot_be_had_does_not_end_the_agent() -> None:
    async def nobody(_: str) -> None:
        return None

    async with running_alive_endpoint(0, nobody, lambda _: None) as alive:
        await alive.listen_on("192.0.2.1")
        assert alive.port_on("192.0.2.1") is None


async def test_a_message_that_cannot_be_noted_is_answered_with_the_cause() -> None:
    async def addresses_of(_: str) -> frozenset[str]:
        return ADDRESSES["mine"]

    def full(_: str) -> None:
        raise DiskFull("the journal cannot be written")

    async with running_alive_endpoint(0, addresses_of, full) as alive:
        await alive.listen_on("127.0.0.1")
        url = f"http://127.0.0.1:{alive.port_on('127.0.0.1')}{PATH}"
        async with aiohttp.request("PUT", url, data={"name": "mine"}) as answer:
            assert answer.status == 507
            assert answer.content_type == "application/problem+json"
