"""scripts/with-docker as a command: what it hands to CMD and gives back, with a pretended engine or none."""

from __future__ import annotations

import os
import signal
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from tests.scripts import SCRIPTS, with_docker

SHOW = 'echo "$DOCKER_HOST|$CORNERSTORE_NO_DOCKER"'


class UnixHttp(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True


class Engine(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/_ping" else 404)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[str]:
    path = tmp_path / "docker.sock"
    with UnixHttp(str(path), Engine) as server:
        serving = threading.Thread(target=server.serve_forever, args=[0.01])
        serving.start()
        yield f"unix://{path}"
        server.shutdown()
        serving.join()


def call(*arguments: str, docker_host: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPTS / "with-docker"), *arguments]
    return subprocess.run(command, env={**os.environ, "DOCKER_HOST": docker_host}, capture_output=True, text=True)


def test_an_engine_that_answers_is_handed_on(engine: str) -> None:
    assert call("sh", "-c", SHOW, docker_host=engine).stdout.strip() == f"{engine}|"


def test_the_exit_status_of_the_command_is_given_back(engine: str) -> None:
    assert call("sh", "-c", "exit 7", docker_host=engine).returncode == 7
    assert call("sh", "-c", "kill -KILL $$", docker_host=engine).returncode == 128 + signal.SIGKILL


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_it_alone_reaches_the_command(engine: str, number: signal.Signals) -> None:
    report = 'trap "echo got it; exit 3" INT TERM; echo ready; while :; do sleep 0.05; done'
    with subprocess.Popen(
        [sys.executable, str(SCRIPTS / "with-docker"), "sh", "-c", report],
        env={**os.environ, "DOCKER_HOST": engine},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # no terminal that would send Ctrl-C to both
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.stdout.readline() == "got it\n"
        assert process.wait(10) == 3


def test_a_command_that_does_not_exist_is_named(engine: str) -> None:
    done = call("no-such-command", docker_host=engine)
    assert done.returncode == 127
    assert "no-such-command" in done.stderr


def test_without_an_engine_the_command_learns_why(tmp_path: Path) -> None:
    nowhere = f"unix://{tmp_path}/none.sock"
    done = call("sh", "-c", SHOW, docker_host=nowhere)
    assert done.returncode == 0
    assert f"|DOCKER_HOST is {nowhere}" in done.stdout
    assert nowhere in done.stderr


def test_a_required_engine_that_is_missing_is_an_error_with_its_fix(tmp_path: Path) -> None:
    done = call("--require", "sh", "-c", "echo ran", docker_host=f"unix://{tmp_path}/none.sock")
    assert (done.returncode, done.stdout) == (1, "")
    assert "start it, or unset DOCKER_HOST" in done.stderr


def test_without_a_command_the_usage_is_shown() -> None:
    assert call(docker_host="").returncode == 2


@pytest.mark.parametrize("content", ["", "not a number", "999999999", pytest.param(str(os.getpid()), id="another's")])
def test_a_stale_pid_file_names_no_process_of_ours(tmp_path: Path, content: str) -> None:
    pid_file = tmp_path / "dockerd.pid"
    pid_file.write_text(content)
    assert with_docker.running(pid_file, mentions=str(tmp_path / "engine")) is None
