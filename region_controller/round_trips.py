"""How long a round trip takes on a connection, as the kernel measured it: no message of ours is needed for that.

Linux keeps in `struct tcp_info` (linux/tcp.h) the least round trip of the last minutes (net.ipv4.tcp_min_rtt_wlen).
Unlike the smoothed one it does not count how long the other side kept an acknowledgement back.
"""

from __future__ import annotations

import asyncio
import socket
import struct

_MIN_RTT = struct.Struct("=148xI")
"""`tcpi_min_rtt` in us, all ones before the first measurement. Since Linux 4.6; shorter where the kernel is older."""
_NOT_MEASURED = 0xFFFFFFFF


def round_trip_ms(transport: asyncio.BaseTransport | None) -> float | None:
    """None where it is not known: another system, an older kernel, no TCP, a connection that just broke."""
    sock = transport.get_extra_info("socket") if transport is not None else None
    if sock is None or not hasattr(socket, "TCP_INFO"):
        return None
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _MIN_RTT.size)
    except OSError:
        return None
    if len(info) < _MIN_RTT.size:
        return None
    (microseconds,) = _MIN_RTT.unpack(info)
    return None if microseconds == _NOT_MEASURED else microseconds / 1000
