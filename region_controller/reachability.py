"""How a client gets to a service: at the service's own address, or through its controller.

An instance of our own agents is called where its agent says. One of another region may stand behind a router that lets
nobody in, or in a network whose numbers mean another machine here: this controller, which is in the client's network,
opens a connection first and remembers what became of it. `way_to` decides, `Doors` tries.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections import OrderedDict
from contextlib import suppress
from enum import Enum

import msgspec

from protocol.instances import Reach, StartAnswer
from region_controller.wanted import loop_time

TRY_S = 1.0
OPEN_FOR_S = 60.0
SHUT_FOR_S = 10.0
"""How long a door that was found open or shut counts as that."""
MAX_REMEMBERED = 1024


class Door(Enum):
    """REFUSED: the machine is there, and nobody listens."""

    OPEN = "open"
    REFUSED = "refused"
    SHUT = "shut"


def way_to(host: str, client: str, *, opens: bool = True) -> Reach:
    """The better way from the address `client` (empty: unknown) to a service at `host`.

    `opens`: as far as we know, connections from here get there. A client of another kind of network than ours is not
    served by that: nobody else gets to a loopback address, and from the public Internet none to a private one.
    """
    there, here = _address(host), _address(client)
    if not opens:
        return "relay"
    if there is None or here is None:
        return "direct"
    if (there.is_loopback or there.is_unspecified) and not here.is_loopback:
        return "relay"
    return "relay" if there.is_private and here.is_global else "direct"


def reached(answer: StartAnswer, client: str, *, opens: bool = True) -> StartAnswer:
    """The answer, with the way that the client has to the service."""
    reach = way_to(answer.host, client, opens=opens)
    relay = f"/v1/instances/{answer.instance}/invoke" if reach == "relay" and answer.url is not None else None
    return msgspec.structs.replace(answer, reach=reach, relay=relay)


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """None for a name."""
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return address.ipv4_mapped or address if isinstance(address, ipaddress.IPv6Address) else address


class Doors:
    """Whether connections from here get to hosts of services. `of` tells machines apart that have one address: the
    controller or the agent that named it."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[str, str], tuple[Door, float]] = OrderedDict()

    async def look(self, of: str, host: str, port: int) -> Door:
        """Within TRY_S."""
        door, until = self._known.get((of, host), (Door.SHUT, 0.0))
        if loop_time() < until:
            return door
        door = await _tried(host, port)
        self._known[of, host] = door, loop_time() + (OPEN_FOR_S if door is Door.OPEN else SHUT_FOR_S)
        self._known.move_to_end((of, host))
        while len(self._known) > MAX_REMEMBERED:
            self._known.popitem(last=False)
        return door


async def _tried(host: str, port: int) -> Door:
    try:
        async with asyncio.timeout(TRY_S):
            _, writer = await asyncio.open_connection(host, port)
    except ConnectionRefusedError:
        return Door.REFUSED
    except (OSError, UnicodeError):  # TimeoutError is one
        return Door.SHUT
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()
    return Door.OPEN
