"""A link with delay, rate, loss and a queue, in user space: for kernels without netem.

One process opens a TAP device in each of two network namespaces and carries Ethernet frames (so ARP, UDP, TCP and
multicast) from one to the other. Per direction, a frame of `n` bytes is due at `max(now, free) + 8 n / rate + delay`,
where `free` is when the line has sent all before it; a frame that would wait longer than the queue allows is dropped.

    python -m tests.multihost.cable NAMESPACE:DEVICE NAMESPACE:DEVICE --delay-ms 20

prints `ready` and runs until SIGTERM. `--delay-ms` is one way; TCP's slow start overshoots small queues, so set
`--queue-ms` on purpose where the rate matters, and always measure the round trip that results.
"""

from __future__ import annotations

import argparse
import ctypes
import fcntl
import os
import random
import select
import struct
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

CLONE_NEWNET = 0x40000000
TUNSETIFF = 0x400454CA
IFF_TAP, IFF_NO_PI = 0x0002, 0x1000
PR_SET_TIMERSLACK = 29
FRAME_LIMIT = 65536
READS_PER_WAKE_UP = 64

libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Line:
    """One direction's terms. `rate_mbit` 0: as fast as it goes; `loss` is a share of the frames.

    `back_mbit`: the rate from the second end to the first (a site's downlink), where it differs.
    """

    delay_ms: float
    rate_mbit: float = 0.0
    loss: float = 0.0
    queue_ms: float = 50.0
    back_mbit: float | None = None

    @property
    def back(self) -> Line:
        return self if self.back_mbit is None else replace(self, rate_mbit=self.back_mbit)


@dataclass
class Direction:
    """Frames on their way. Plain state: `now` is handed in, in nanoseconds; frames leave in the order they came."""

    line: Line
    free: int = 0
    under_way: deque[tuple[int, bytes]] = field(default_factory=deque)

    def enter(self, now: int, frame: bytes, chance: float) -> bool:
        """False when the frame is lost: by `chance` (in [0, 1)) or because the queue is full."""
        start = max(now, self.free)
        if chance < self.line.loss or start - now > self.line.queue_ms * 1e6:
            return False
        sending = len(frame) * 8e3 / self.line.rate_mbit if self.line.rate_mbit else 0.0
        self.free = start + int(sending)
        self.under_way.append((self.free + int(self.line.delay_ms * 1e6), frame))
        return True

    def leave(self, now: int) -> list[bytes]:
        """The frames that have arrived by now."""
        arrived = []
        while self.under_way and self.under_way[0][0] <= now:
            arrived.append(self.under_way.popleft()[1])
        return arrived

    def next_arrival(self) -> int | None:
        return self.under_way[0][0] if self.under_way else None


def open_tap(namespace: str, device: str) -> int:
    """A new TAP device in the namespace, which this process is in afterwards. It lives as long as the descriptor."""
    _enter(Path("/run/netns") / namespace)
    tap = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(tap, TUNSETIFF, struct.pack("16sH22x", device.encode(), IFF_TAP | IFF_NO_PI))
    return tap


@contextmanager
def inside(namespace: Path) -> Iterator[None]:
    """This thread is in the network namespace for the time of the block."""
    home = Path(f"/proc/self/fd/{os.open('/proc/thread-self/ns/net', os.O_RDONLY)}")
    try:
        _enter(namespace)
        yield
    finally:
        _enter(home)
        os.close(int(home.name))


def _enter(namespace: Path) -> None:
    entrance = os.open(namespace, os.O_RDONLY)
    try:
        if libc.setns(entrance, CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), f"cannot enter network namespace {namespace}")
    finally:
        os.close(entrance)


def carry(ends: tuple[int, int], line: Line) -> None:
    """Runs until the process ends."""
    libc.prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0)  # wake up on time: the default slack is 50 us
    directions = {ends[0]: (ends[1], Direction(line)), ends[1]: (ends[0], Direction(line.back))}
    while True:
        now = time.monotonic_ns()
        for target, direction in directions.values():
            for frame in direction.leave(now):
                _write(target, frame)
        due = [arrival for _, d in directions.values() if (arrival := d.next_arrival()) is not None]
        timeout = max(0, min(due) - time.monotonic_ns()) / 1e9 if due else None
        for end in select.select(ends, (), (), timeout)[0]:
            _read(end, directions[end][1])


def _read(end: int, direction: Direction) -> None:
    for _ in range(READS_PER_WAKE_UP):
        try:
            frame = os.read(end, FRAME_LIMIT)
        except OSError:  # nothing more, or the device is down
            return
        direction.enter(time.monotonic_ns(), frame, random.random())


def _write(end: int, frame: bytes) -> None:
    try:
        os.write(end, frame)
    except OSError:  # the device is down or its queue is full: a cable loses the frame
        return


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("ends", nargs=2, metavar="NAMESPACE:DEVICE")
    arguments.add_argument("--delay-ms", type=float, required=True)
    arguments.add_argument("--rate-mbit", type=float, default=0.0)
    arguments.add_argument("--loss", type=float, default=0.0)
    arguments.add_argument("--queue-ms", type=float, default=50.0)
    arguments.add_argument("--back-mbit", type=float)
    given = arguments.parse_args()
    (space_a, device_a), (space_b, device_b) = (end.split(":") for end in given.ends)
    ends = open_tap(space_a, device_a), open_tap(space_b, device_b)
    print("ready", flush=True)
    carry(ends, Line(given.delay_ms, given.rate_mbit, given.loss, given.queue_ms, given.back_mbit))


if __name__ == "__main__":
    main()
