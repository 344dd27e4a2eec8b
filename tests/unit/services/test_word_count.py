"""services/word_count, run in this process: its own server and application on a free port."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.samples import jargon_file
from tests.service_stage import SERVICES, call, form, load, serving

SOURCE = SERVICES / "word_count/wordcount"
service = load(SOURCE)


@pytest.fixture
def port() -> Iterator[int]:
    with serving(service.app) as port:
        yield port


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", 0),
        (b" \n\t ", 0),
        (b"one", 1),
        (b"one two\nthree ", 3),
        ("Größe\u00a0in\u3000Zeichen".encode(), 3),
        ("süß und sauer".encode("latin-1"), 3),
        (b"\xff\xfe\x00\x81", 1),
        (b"cut off in a letter \xe3\x81", 6),
    ],
)
def test_a_text_is_answered_with_the_number_of_its_words(port: int, text: bytes, words: int) -> None:
    answer = call(port, "POST", "/wordcount", text)
    assert (answer.status, answer.text) == (200, str(words))
    assert answer.kind.startswith("text/plain")


def test_the_words_of_a_real_text_are_as_many_as_wc_says(port: int) -> None:
    assert call(port, "POST", "/wordcount", jargon_file()).text == "239084"


def test_a_form_is_answered_for_its_field_file(port: int) -> None:
    body = form(('name="note"; filename="file"', b"not this one"), ('name="file"; filename="a.txt"', b"one two\r\n3"))
    kind = 'multipart/form-data; boundary="xyz"'
    assert call(port, "POST", "/wordcount", body, Content_Type=kind).text == "3"


def test_a_form_without_the_field_file_is_refused(port: int) -> None:
    body = form(('name="other"', b"one two"))
    answer = call(port, "POST", "/wordcount", body, Content_Type="multipart/form-data; boundary=xyz")
    assert (answer.status, answer.kind) == (400, "application/problem+json")
    assert '"file"' in answer.json["detail"]


def test_a_text_over_the_limit_gets_its_answer_although_its_bytes_are_not_read(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        head = f"POST /wordcount HTTP/1.1\r\nHost: x\r\nContent-Length: {service.LIMIT + 1}\r\n\r\n"
        connection.sendall(head.encode() + bytes(2**20))
        answer = b"".join(iter(lambda: connection.recv(4096), b"")).decode()
    assert answer.split()[1] == "413"
    assert str(service.LIMIT) in answer


def test_a_text_without_a_length_is_refused(port: int) -> None:
    answer = call(port, "POST", "/wordcount", None, Transfer_Encoding="chunked")
    assert answer.status == 411
    assert "Content-Length" in answer.json["detail"]


def test_a_client_that_leaves_early_does_not_stop_the_service(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(b"POST /wordcount HTTP/1.1\r\nContent-Length: 100\r\n\r\nhalf a")
        connection.shutdown(socket.SHUT_WR)
        assert b" 400 " in connection.recv(4096)
    assert call(port, "POST", "/wordcount", b"still here").text == "2"


def test_the_front_page_says_what_the_service_does(port: int) -> None:
    assert "/wordcount" in call(port, "GET", "/").text


def test_what_it_does_not_do_is_said_in_a_sentence(port: int) -> None:
    for method, path, status in (("GET", "/nowhere", 404), ("GET", "/wordcount", 405)):
        answer = call(port, method, path)
        assert (answer.status, answer.kind, answer.json["status"]) == (status, "application/problem+json", status)
        assert answer.json["detail"]


def test_many_megabytes_are_counted_in_flat_memory() -> None:
    chunk = b"four words of text " * 3449
    tracemalloc.start()
    try:
        assert service.count(chunk for _ in range(300)) == 4 * 3449 * 300
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * 2**20


def cut(data: bytes, sizes: list[int]) -> Iterator[bytes]:
    for size in sizes:
        yield data[:size]
        data = data[size:]
    yield data


@given(st.text(), st.lists(st.integers(0, 9)))
def test_chunks_do_not_change_the_count(text: str, sizes: list[int]) -> None:
    assert service.count(cut(text.encode(), sizes)) == len(text.split())


@given(st.binary(), st.lists(st.integers(0, 40)))
def test_chunks_do_not_change_a_field(value: bytes, sizes: list[int]) -> None:
    body = form(
        ('name="a"', b"x"), ('name="file"', value), ('name="b"', b"y"), boundary=b"a-boundary-of-32-characters-0000"
    )
    got = b"".join(service.file_field(cut(body, sizes), b"a-boundary-of-32-characters-0000"))
    assert got == value


def test_the_agent_hears_at_start_and_sigterm_ends_the_service_with_success() -> None:
    names: list[str] = []
    heard = threading.Event()

    class Agent(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            names.append(self.path + " " + parse_qs(body)["name"][0])
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()
            heard.set()

        def log_message(self, *_: object) -> None:
            return

    with ThreadingHTTPServer(("127.0.0.1", 0), Agent) as agent:
        threading.Thread(target=agent.serve_forever, args=[0.01], daemon=True).start()
        environment = {"PORT": "0", "name": "wc01-7", "AGENT_URL": f"http://127.0.0.1:{agent.server_port}"}
        with subprocess.Popen([sys.executable, str(SOURCE / "app.py")], env=environment) as process:
            try:
                assert heard.wait(10)
            finally:
                process.terminate()
            assert process.wait(10) == 0
        agent.shutdown()
    assert names == ["/api/microservices wc01-7"]
