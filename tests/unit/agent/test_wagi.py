"""Requests as CGI variables, and the answers that modules write."""

from __future__ import annotations

import pytest

from agent.wasm.wagi import MAX_HEAD, Answer, Head, arguments, environment, parse_answer
from protocol.problems import BadRequest, ServiceError


def head(path: str = "/word%20count", query: str = "", *headers: tuple[str, str]) -> Head:
    return Head(
        method="POST", path=path, query=query, headers=headers, host="shop.local", port=8123, remote="127.0.0.1"
    )


def test_a_request_is_in_the_environment() -> None:
    found = dict(environment(head("/word%20count", "a=1&b", ("Content-Type", "text/plain"), ("X-Test", "t")), 7, {}))
    assert found["REQUEST_METHOD"] == "POST"
    assert (found["PATH_INFO"], found["X_RAW_PATH_INFO"]) == ("/word count", "/word%20count")
    assert found["QUERY_STRING"] == "a=1&b"
    assert (found["CONTENT_LENGTH"], found["CONTENT_TYPE"]) == ("7", "text/plain")
    assert (found["SERVER_NAME"], found["SERVER_PORT"]) == ("shop.local", "8123")
    assert found["X_FULL_URL"] == "http://shop.local:8123/word%20count?a=1&b"
    assert found["HTTP_X_TEST"] == "t"
    assert "HTTP_CONTENT_TYPE" not in found


def test_a_service_s_own_variables_cannot_pose_as_the_request() -> None:
    found = dict(environment(head(), 0, {"name": "one", "PATH_INFO": "/else", "GREETING": "hi"}))
    assert (found["name"], found["GREETING"], found["PATH_INFO"]) == ("one", "hi", "/word count")


@pytest.mark.parametrize(
    "hostile", [("Proxy", "http://evil"), ("Authorization", "Bearer x"), ("Connection", "close"), ("X_Test", "shadow")]
)
def test_some_headers_are_not_handed_on(hostile: tuple[str, str]) -> None:
    assert hostile[1] not in dict(environment(head("/", "", hostile), 0, {})).values()


def test_repeated_headers_are_one_list() -> None:
    found = dict(environment(head("/", "", ("Accept", "a"), ("accept", "b")), 0, {}))
    assert found["HTTP_ACCEPT"] == "a, b"


def test_a_zero_byte_in_the_path_is_refused() -> None:
    with pytest.raises(BadRequest):
        environment(head("/a%00b"), 0, {})


def test_what_is_no_utf8_is_replaced() -> None:
    raw = b"\xff".decode("utf-8", "surrogateescape")
    assert dict(environment(head("/", "", ("X-Raw", raw)), 0, {}))["HTTP_X_RAW"] == "�"


def test_the_query_s_parts_are_the_arguments() -> None:
    assert arguments("m.wasm", "a=1&b&&c=%20") == ["m.wasm", "a=1", "b", "c=%20"]


@pytest.mark.parametrize(
    ("output", "answer"),
    [
        (b"Content-Type: text/plain\n\nhi", Answer(200, (("Content-Type", "text/plain"),), b"hi")),
        (b"Content-Type: a/b\r\n\r\nhi\n\nho", Answer(200, (("Content-Type", "a/b"),), b"hi\n\nho")),
        (b"Status: 404 Not Found\nContent-Type: a/b\n\n", Answer(404, (("Content-Type", "a/b"),), b"")),
        (b"Location: /there\n\n", Answer(302, (("Location", "/there"),), b"")),
        (b"status: 201\nLocation: /there\n\n", Answer(201, (("Location", "/there"),), b"")),
        (
            b"Content-Type: a/b\nConnection: close\nContent-Length: 9\n\nx",
            Answer(200, (("Content-Type", "a/b"),), b"x"),
        ),
    ],
)
def test_answers(output: bytes, answer: Answer) -> None:
    assert parse_answer(output) == answer


@pytest.mark.parametrize(
    "output",
    [
        b"",
        b"hello",
        b"Content-Type: text/plain\n",
        b"\n\nhello",
        b"X-Only: this\n\nhello",
        b"Status: 99\n\n",
        b"Status: ok\n\n",
        b"Content-Type: a\x01b\n\n",
        b"Bad Name: x\nStatus: 200\n\n",
        b"Content-Type: " + b"a" * MAX_HEAD + b"\n\n",
    ],
)
def test_what_is_no_answer_is_refused(output: bytes) -> None:
    with pytest.raises(ServiceError):
        parse_answer(output)
