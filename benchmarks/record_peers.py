"""A process with a number of DHT nodes of one system: Cornerstore, OpenDHT or plain kademlia, driven over stdin.

    record_peers.py SYSTEM COUNT FIRST_NUMBER [BOOTSTRAP_PORT]

Prints the ports of its nodes as JSON when all have joined, then answers each line `{"op", "node", "name", "ask"}` with
`{"ask", "ok", "ms"}` (and `first_ms` where a system reports its first value early). Operations run side by side.
Needs the standard library and the measured system only: OpenDHT's binding belongs to Debian's own interpreter.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import socket
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Protocol

VALUE_BYTES = 270
"""As large as one of our signed provider records."""


class Peer(Protocol):
    port: int

    async def put(self, name: str) -> bool: ...

    async def get(self, name: str) -> tuple[bool, float | None]:
        """Whether the value was found; the time of the first answer in `time.perf_counter()`, where it is told."""


Start = Callable[[AsyncExitStack, int, "int | None"], Awaitable[Peer]]


class Cornerstore:
    """One record at one key, as a node announces content. `put` returns at 5 acks, `get` when the set is complete."""

    def __init__(self, directory: Any) -> None:
        self._directory = directory
        self.port: int = directory.udp_port

    async def put(self, name: str) -> bool:
        await self._directory.announce_content(_digest(name))
        return True

    async def get(self, name: str) -> tuple[bool, float | None]:
        from protocol.problems import Unavailable

        try:
            return len(await self._directory.providers(_digest(name))) == 1, None
        except Unavailable:
            return False, None

    @classmethod
    async def start(cls, stack: AsyncExitStack, number: int, bootstrap: int | None) -> Cornerstore:
        import logging

        import structlog
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        from dht.overlay.sealing import Keyring
        from dht.records.directory import DirectoryConfig, running_directory
        from protocol.admission import Credentials, admit
        from protocol.records import raw_public_key

        root = Ed25519PrivateKey.from_private_bytes(b"r" * 32)
        key = Ed25519PrivateKey.from_private_bytes(hashlib.sha256(b"bench%d" % number).digest())
        structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))  # stdout is taken
        known = () if bootstrap is None else (f"127.0.0.1:{bootstrap}",)
        directory = await stack.enter_async_context(
            running_directory(
                DirectoryConfig(host="127.0.0.1", port=0, bootstrap=known),
                credentials=Credentials(key, admit(root, raw_public_key(key), 2**40), raw_public_key(root)),
                keyring=Keyring(mesh="bench", keys={1: b"k" * 32}, current=1),
                addresses=(f"127.0.0.1:{9000 + number}",),
            )
        )
        return cls(directory)


class PlainKademlia:
    """The package as it comes: `Server.set` and `Server.get`."""

    def __init__(self, server: Any, port: int) -> None:
        self._server = server
        self.port = port

    async def put(self, name: str) -> bool:
        return bool(await self._server.set(name, _value(name)))

    async def get(self, name: str) -> tuple[bool, float | None]:
        return await self._server.get(name) == _value(name), None

    @classmethod
    async def start(cls, stack: AsyncExitStack, number: int, bootstrap: int | None) -> PlainKademlia:
        from kademlia.network import Server

        server = Server()
        await server.listen(0, interface="127.0.0.1")
        stack.callback(server.stop)
        if bootstrap is not None:
            await server.bootstrap([("127.0.0.1", bootstrap)])
        return cls(server, server.transport.get_extra_info("sockname")[1])


class OpenDht:
    """Debian's python3-opendht, its rate limits off: they count all of 127.0.0.1 as one sender."""

    def __init__(self, runner: Any, binding: Any) -> None:
        self._runner = runner
        self._binding = binding
        self.port: int = runner.getBound().getPort()

    async def put(self, name: str) -> bool:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[bool] = loop.create_future()
        self._runner.put(
            self._binding.InfoHash.get(name),
            self._binding.Value(_value(name)),
            lambda ok, _nodes: loop.call_soon_threadsafe(done.set_result, bool(ok)),
        )
        return await done

    async def get(self, name: str) -> tuple[bool, float | None]:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        found: list[float] = []

        def on_value(value: Any) -> bool:
            if value.data == _value(name):
                found.append(time.perf_counter())
            return True

        self._runner.get(
            self._binding.InfoHash.get(name),
            on_value,
            lambda _ok, _nodes: loop.call_soon_threadsafe(done.set_result, None),
        )
        await done
        return bool(found), found[0] if found else None

    @classmethod
    async def start(cls, stack: AsyncExitStack, number: int, bootstrap: int | None) -> OpenDht:
        import opendht

        config = opendht.DhtConfig()
        config.setRateLimit(-1, -1)
        runner = opendht.DhtRunner()
        runner.run(ipv4="127.0.0.1", config=config)
        if bootstrap is not None:
            runner.bootstrap("127.0.0.1", str(bootstrap))
            while "Node" not in await asyncio.to_thread(runner.getRoutingTablesLog, socket.AF_INET):
                await asyncio.sleep(0.02)
        return cls(runner, opendht)


SYSTEMS: dict[str, Start] = {
    "cornerstore": Cornerstore.start,
    "kademlia": PlainKademlia.start,
    "opendht": OpenDht.start,
}


def _digest(name: str) -> str:
    return "sha256:" + hashlib.sha256(name.encode()).hexdigest()


def _value(name: str) -> bytes:
    return (name.encode() + b"=" + b"v" * VALUE_BYTES)[:VALUE_BYTES]


async def perform(peer: Peer, op: str, name: str) -> dict[str, object]:
    began = time.perf_counter()
    first: float | None = None
    if op == "put":
        ok = await peer.put(name)
    else:
        ok, first = await peer.get(name)
    answer: dict[str, object] = {"ok": ok, "ms": (time.perf_counter() - began) * 1e3}
    if first is not None:
        answer["first_ms"] = (first - began) * 1e3
    return answer


async def serve(system: str, count: int, first: int, bootstrap: int | None) -> None:
    async with AsyncExitStack() as stack:
        peers: list[Peer] = []
        for number in range(first, first + count):
            peers.append(await SYSTEMS[system](stack, number, bootstrap))
            bootstrap = bootstrap or peers[0].port
        print(json.dumps([peer.port for peer in peers]), flush=True)
        reader = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        running: set[asyncio.Task[None]] = set()

        async def answer(order: dict[str, Any]) -> None:
            result = await perform(peers[order["node"]], order["op"], order["name"])
            print(json.dumps({"ask": order["ask"], **result}), flush=True)

        while line := await reader.readline():
            task = asyncio.create_task(answer(json.loads(line)))
            running.add(task)
            task.add_done_callback(running.discard)


def main() -> None:
    system, count, first, *rest = sys.argv[1:]
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    work = serve(system, int(count), int(first), int(rest[0]) if rest else None)
    if system == "opendht":
        asyncio.run(work)
    else:
        import uvloop

        uvloop.run(work)


if __name__ == "__main__":
    main()
