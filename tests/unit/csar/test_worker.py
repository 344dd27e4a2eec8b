"""The worker process: confined, bounded, started again after a kill, never left behind."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import uvloop

from csar import Limits, Parser, worker_process
from csar.worker_process import WorkerProcess
from protocol.problems import InvalidArchive, Unavailable
from tests.unit.csar.samples import edited, word_count, write_zip
from tests.waiting import until

ROOT = Path(__file__).resolve().parents[3]

GOOD: dict[str, Any] = {
    "node_templates": {
        "n": {
            "type": "tosca.nodes.microservices.docker_container",
            "properties": {"id": "a", "name": "b", "mem_requirement": 1, "category": "/x", "container_port": 80},
        }
    }
}
BOMB: dict[str, Any] = {
    **GOOD,
    "inputs": {"x": {"type": "string", "default": "a" * 40 + "!", "constraints": [{"pattern": "(a+)+$"}]}},
}
"""What `csar.template` would never let through: a regular expression that takes years."""


def workers() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if "csar.worker" in child.cmdline()]


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    before = workers()
    yield
    assert [w for w in workers() if w not in before] == []


@pytest.fixture
def worker() -> Iterator[WorkerProcess]:
    worker = WorkerProcess(Limits(wall_s=1.0))
    yield worker
    worker.close()


def test_it_starts_when_first_needed_and_is_reused(worker: WorkerProcess) -> None:
    before = workers()
    assert worker.complaints(GOOD) == []
    (first,) = [w for w in workers() if w not in before]
    assert worker.complaints(GOOD) == []
    assert first in workers()


def test_it_can_be_started_before_the_first_archive_comes(worker: WorkerProcess) -> None:
    before = workers()
    worker.warm_up()
    (first,) = [w for w in workers() if w not in before]
    worker.warm_up()
    assert worker.complaints(GOOD) == []
    assert [w for w in workers() if w not in before] == [first]


def test_a_job_that_takes_too_long_is_killed_and_the_next_one_served(worker: WorkerProcess) -> None:
    worker.complaints(GOOD)
    started = time.monotonic()
    with pytest.raises(InvalidArchive) as caught:
        worker.complaints(BOMB)
    assert caught.value.extra["code"] == "parse-timeout"
    assert 0.9 < time.monotonic() - started < 3
    assert worker.complaints(GOOD) == []


def test_processor_time_is_bounded_for_each_job() -> None:
    worker = WorkerProcess(Limits(cpu_s=1, wall_s=60))
    try:
        worker.complaints(GOOD)
        with pytest.raises(InvalidArchive) as caught:
            worker.complaints(BOMB)
        assert caught.value.extra["code"] == "parse-failed"
        assert worker.complaints(GOOD) == []
    finally:
        worker.close()


def test_memory_is_bounded() -> None:
    worker = WorkerProcess(Limits(memory_bytes=192 << 20, wall_s=60, cpu_s=60))
    huge = {**GOOD, "small in JSON, large in memory": [[]] * 2_600_000}
    try:
        with pytest.raises(InvalidArchive) as caught:
            worker.complaints(huge)
        assert caught.value.extra["code"] == "parse-failed"
        assert worker.complaints(GOOD) == []
    finally:
        worker.close()


def test_the_kernel_gives_it_no_descriptor_and_no_file(worker: WorkerProcess) -> None:
    before = workers()
    worker.complaints(GOOD)
    (process,) = [w for w in workers() if w not in before]
    assert process.num_fds() == 3
    text = Path(f"/proc/{process.pid}/limits").read_text()
    limits = {line[:25].strip(): line[25:].split()[:2] for line in text.splitlines()}
    assert limits["Max open files"] == ["3", "3"]
    assert limits["Max file size"] == ["0", "0"]
    assert limits["Max address space"] == [str(512 << 20)] * 2
    assert process.environ().keys() <= {"PYTHONPATH", "PYTHONDONTWRITEBYTECODE", "LC_CTYPE"}
    assert process.cwd() == "/"
    assert os.getpgid(process.pid) != os.getpgid(0)


def test_confined_code_can_neither_open_nor_connect() -> None:
    code = """
import errno, json, os, socket
from csar.worker import _confine
def refusal(call):
    try: call()
    except OSError as error: return errno.errorcode[error.errno]
_confine(512 << 20)
print(json.dumps([refusal(socket.socket), refusal(lambda: open("/etc/passwd")), refusal(os.pipe)]))
"""
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True)
    # The interpreter closed whatever else it had: 0, 1 and 2 are all there is.
    assert json.loads(ran.stdout) == ["EMFILE", "EMFILE", "EMFILE"]


def test_complaints_have_a_place_or_concern_the_whole(worker: WorkerProcess) -> None:
    node = GOOD["node_templates"]["n"]
    (placed,) = worker.complaints({"node_templates": {"n": {**node, "properties": {**node["properties"], "id": "/"}}}})
    assert placed.path == ("topology_template", "node_templates", "n", "properties", "id")
    (whole,) = worker.complaints({"node_templates": {"n": {**node, "requirements": [{"downstream": "n"}]}}})
    assert whole.path == ()
    assert "downstream" in whole.message


def test_a_dead_worker_is_replaced(worker: WorkerProcess) -> None:
    before = workers()
    worker.complaints(GOOD)
    (process,) = [w for w in workers() if w not in before]
    process.send_signal(signal.SIGKILL)
    process.wait(5)
    assert worker.complaints(GOOD) == []


def test_a_worker_is_renewed_after_many_jobs(worker: WorkerProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_process, "_JOBS_PER_PROCESS", 2)
    seen = set()
    for _ in range(4):
        worker.complaints(GOOD)
        seen |= {w.pid for w in workers()}
    assert len(seen) == 2


def test_after_close_there_is_no_process_and_no_service(worker: WorkerProcess) -> None:
    worker.complaints(GOOD)
    worker.close()
    worker.close()
    assert workers() == []
    with pytest.raises(Unavailable):
        worker.complaints(GOOD)


def test_close_does_not_wait_for_a_process_that_starts(worker: WorkerProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that ends just after it came up. The process does not say that it is ready before it is killed."""
    raised: list[str] = []

    def never_ready(process: subprocess.Popen[bytes]) -> None:
        process.wait(20)

    def warm_up() -> None:
        try:
            worker.warm_up()
        except Unavailable as problem:
            raised.append(problem.detail)

    monkeypatch.setattr("csar.worker_process._read", never_ready)
    before = workers()
    starting = threading.Thread(target=warm_up)
    starting.start()
    while not [w for w in workers() if w not in before]:
        time.sleep(0.01)
    worker.close()
    starting.join(5)
    assert raised == ["the node is stopping"]


def test_close_ends_a_process_that_it_could_not_see_yet(worker: WorkerProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    """It exists before the call that makes it has returned."""
    made: list[subprocess.Popen[bytes]] = []
    closing = threading.Thread(target=worker.close)
    real = subprocess.Popen

    def made_slowly(*arguments: Any, **options: Any) -> subprocess.Popen[bytes]:
        made.append(real(*arguments, **options))
        closing.start()
        while not worker._closed:
            time.sleep(0.001)
        return made[0]

    def never_ready(process: subprocess.Popen[bytes]) -> None:
        process.wait(20)

    monkeypatch.setattr("csar.worker_process.subprocess.Popen", made_slowly)
    monkeypatch.setattr("csar.worker_process._read", never_ready)
    with pytest.raises(Unavailable, match="the node is stopping"):
        worker.warm_up()
    closing.join(5)
    assert made[0].returncode is not None


def test_close_ends_a_job_in_progress() -> None:
    worker = WorkerProcess(Limits(wall_s=60, cpu_s=60))
    worker.complaints(GOOD)
    raised: list[Exception] = []

    def job() -> None:
        try:
            worker.complaints(BOMB)
        except Unavailable as error:
            raised.append(error)

    thread = threading.Thread(target=job)
    thread.start()
    (process,) = workers()
    while process.cpu_percent(0.05) < 50:  # the job runs
        pass
    worker.close()
    thread.join(5)
    assert len(raised) == 1


async def test_it_ends_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    archive = write_zip(tmp_path / "s.csar", word_count())
    code = f"""
import os, signal
from collections.abc import Iterator
from pathlib import Path
from csar import Parser
parser = Parser()
parser.describe_sync(Path({str(archive)!r}))
children = Path(f"/proc/self/task/{{os.getpid()}}/children").read_text()
print(children, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True)
    pid = int(ran.stdout.split()[-1])
    assert ran.returncode == -signal.SIGKILL
    await until(lambda: not psutil.pid_exists(pid))


async def test_many_at_once_get_their_own_answers(tmp_path: Path) -> None:
    good = write_zip(tmp_path / "good.csar", word_count())
    bad = write_zip(tmp_path / "bad.csar", edited("8080", "70000"))
    async with Parser() as parser:
        answers = await asyncio.gather(*(parser.describe(p) for p in [good, bad] * 20), return_exceptions=True)
    assert {type(answer).__name__ for answer in answers[::2]} == {"ServiceDescriptor"}
    assert {type(answer).__name__ for answer in answers[1::2]} == {"InvalidArchive"}


async def test_a_caller_may_give_up(tmp_path: Path) -> None:
    archive = write_zip(tmp_path / "s.csar", word_count())
    async with Parser() as parser:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(parser.describe(archive), 0.01)
        assert (await parser.describe(archive)).id == "wc01"


def test_it_works_under_uvloop(tmp_path: Path) -> None:
    archive = write_zip(tmp_path / "s.csar", word_count())

    async def story() -> str:
        async with Parser() as parser:
            return (await parser.describe(archive)).id

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(story()) == "wc01"
