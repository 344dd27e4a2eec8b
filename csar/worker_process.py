"""The worker as its parent sees it: started when first needed, reused, killed when a job takes too long."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import structlog

from csar.frames import Complaint, read_frame, write_frame
from csar.limits import Limits
from csar.refusals import refusal
from protocol.problems import InvalidArchive, Unavailable

log = structlog.get_logger(__name__)

_JOBS_PER_PROCESS = 500
"""tosca-parser grows a little with every template; a fresh process costs half a second."""


class WorkerProcess:
    """The child process, seen from its parent. All calls block; one job at a time."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._jobs = 0
        self._closed = False

    def complaints(self, topology: dict[str, Any]) -> list[Complaint]:
        """What tosca-parser has against it. Raises InvalidArchive if the process takes too long or dies of it."""
        job = msgspec.json.encode(topology)
        with self._lock:
            process = self._ready()
            with _deadline(process, self._limits.wall_s) as expired:
                answer = _exchange(process, job)
            self._jobs += 1
            if expired.is_set() or answer is None:
                self._end()
            try:
                return msgspec.json.decode(answer or b"", type=list[Complaint])
            except msgspec.MsgspecError:
                self._end()
                raise self._failure(expired.is_set()) from None

    def warm_up(self) -> None:
        """Start the process if none runs. Raises Unavailable."""
        with self._lock:
            self._ready()

    def close(self) -> None:
        """End the process; a job in progress fails. Idempotent."""
        self._closed = True
        process = self._process
        if process is not None:
            process.kill()
        with self._lock:
            self._end()

    def _ready(self) -> subprocess.Popen[bytes]:
        if self._closed:
            raise Unavailable("the node is stopping", fix="Ask again when it is up.")
        if self._jobs >= _JOBS_PER_PROCESS or (self._process is not None and self._process.poll() is not None):
            self._end()
        return self._process or self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        here = str(Path(__file__).resolve().parent.parent)
        process = self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
            [sys.executable, "-P", "-m", "csar.worker", str(self._limits.memory_bytes), str(self._limits.cpu_s)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            process_group=0,  # Ctrl-C at a terminal is for the parent, which ends this process itself
            env={"PYTHONPATH": here, "PYTHONDONTWRITEBYTECODE": "1"},
        )
        if self._closed:  # while it was being started, when `close` could not see it
            process.kill()
        with _deadline(process, self._limits.start_s):
            ready = _read(process)
        if ready is None:
            self._end()
            if self._closed:
                raise self._failure(expired=False)
            raise Unavailable("the process that checks templates did not start", fix="Check the machine's memory.")
        log.debug("csar-worker-started", pid=process.pid)
        return process

    def _end(self) -> None:
        if self._process is not None:
            _reap(self._process)
        self._process, self._jobs = None, 0

    def _failure(self, expired: bool) -> InvalidArchive | Unavailable:
        if self._closed:
            return Unavailable("the node is stopping", fix="Ask again when it is up.")
        if expired:
            return refusal(
                "parse-timeout", f"checking the template took over {self._limits.wall_s:g} s", "Make it simpler."
            )
        return refusal("parse-failed", "the template exhausted the process that checks it", "Make it simpler.")


@contextlib.contextmanager
def _deadline(process: subprocess.Popen[bytes], seconds: float) -> Iterator[threading.Event]:
    """Kill `process` after `seconds`; the event tells whether that happened."""
    expired = threading.Event()

    def expire() -> None:
        expired.set()
        process.kill()

    timer = threading.Timer(seconds, expire)
    timer.daemon = True
    timer.start()
    try:
        yield expired
    finally:
        timer.cancel()
        timer.join()  # afterwards `expired` is final


def _exchange(process: subprocess.Popen[bytes], job: bytes) -> bytes | None:
    assert process.stdin is not None
    try:
        write_frame(process.stdin, job)
    except OSError:
        return None
    return _read(process)


def _read(process: subprocess.Popen[bytes]) -> bytes | None:
    assert process.stdout is not None
    try:
        return read_frame(process.stdout)
    except ValueError:
        return None


def _reap(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()
