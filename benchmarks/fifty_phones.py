"""Fifty phones ask for one cold service at the same moment: the time to the fiftieth answer, beside one cold start.

Each phone has a connection of its own and opens it in the measured time. `fiftieth`: until the last of them can call
the service, over one phone's cold start of the same image, in turn. Exactly one instance may come of it.

Fifty phones have fifty processors; here they share two with the node and the engine. So a phone is a socket that sends
a request's bytes and keeps the answer's: an HTTP client for each would take some 40 ms from those who are measured.
"""

from __future__ import annotations

import asyncio
import sys
from urllib.parse import urlsplit

import msgspec

from benchmarks.containers import PATIENCE_S, measured
from benchmarks.one_site import one_site
from benchmarks.report import finish, median_ratio, summary
from bootstrap import Identity
from client.controller import ControllerClient
from protocol.instances import StartAnswer, StartRequest

RUNS = 9
PHONES = 50
SETTLE_S = 1.5
"""What the run before left to be done (a sandbox to be made) is done."""


async def main() -> None:
    one: list[float] = []
    fifty: list[float] = []
    async with (
        one_site() as (site, client),
        ControllerClient(site.running.rest, token=Identity.load(site.data_dir).operator_token) as operator,
    ):
        await client.start(StartRequest(service="wc01", wait_s=PATIENCE_S))  # builds the image
        await remove_only(operator)
        for _ in range(RUNS):
            one.append(await asked_by(1, site.running.rest))
            await remove_only(operator)
            fifty.append(await asked_by(PHONES, site.running.rest))
            await remove_only(operator)
            print(f"one {one[-1]:.0f} ms, the last of {PHONES} {fifty[-1]:.0f} ms", file=sys.stderr)
    finish(
        "fifty-phones",
        runs=RUNS,
        ours={"fiftieth_ms": summary(fifty)},
        reference={"one_cold_start_ms": summary(one)},
        ratios={"fiftieth": median_ratio(fifty, one)},
    )


async def asked_by(phones: int, url: str) -> float:
    """Ms until the last phone has its answer."""
    answers: list[bytes] = []

    async def ask() -> None:
        answers.append(await phone(url))

    async def all_ask() -> None:
        await asyncio.gather(*(ask() for _ in range(phones)))

    took = await measured(all_ask)
    started = [start_answer(answer) for answer in answers]
    if [answer.start for answer in started].count("cold") != 1 or len({answer.instance for answer in started}) != 1:
        raise RuntimeError("one cold start was to be shared")
    return took


async def phone(url: str) -> bytes:
    """Ask on a new connection. The whole answer, as it came."""
    address = urlsplit(url)
    body = msgspec.json.encode(StartRequest(service="wc01", wait_s=PATIENCE_S))
    head = (
        f"POST /v1/instances HTTP/1.1\r\nHost: {address.netloc}\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    try:
        writer.write(head.encode() + body)
        return await reader.read()
    finally:
        writer.close()


def start_answer(response: bytes) -> StartAnswer:
    head, _, body = response.partition(b"\r\n\r\n")
    if not head.startswith((b"HTTP/1.1 200", b"HTTP/1.1 201")):
        raise RuntimeError(f"a phone was answered {response[:500]!r}")
    return msgspec.json.decode(body, type=StartAnswer)


async def remove_only(operator: ControllerClient) -> None:
    """The one instance there is, whoever holds leases on it."""
    instances = await operator.instances()
    if len(instances) != 1:
        raise RuntimeError(f"{len(instances)} instances where one was expected")
    await operator.remove(instances[0].instance)
    await asyncio.sleep(SETTLE_S)


if __name__ == "__main__":
    asyncio.run(main())
