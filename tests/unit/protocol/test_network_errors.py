"""Causes in words, whatever the library that wraps them says."""

from __future__ import annotations

import asyncio
import socket
import ssl

import aiohttp
import pytest

from dht.peer_http import WRONG_PORT_FIX, PeerHttp
from protocol.network_errors import network_cause, speaks_no_tls
from protocol.problems import Unavailable


class Wrapped(Exception):
    """As HTTP libraries do it: a text of their own around the system's error."""

    def __init__(self, os_error: Exception) -> None:
        super().__init__(f"Cannot connect to host a:1 ssl:<ssl.SSLContext object at 0x7f> [{os_error}]")
        self.os_error = os_error


def not_tls() -> ssl.SSLError:
    error = ssl.SSLError(1, "[SSL: WRONG_VERSION_NUMBER] wrong version number (_ssl.c:1006)")
    error.reason = "WRONG_VERSION_NUMBER"
    return error


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (ConnectionRefusedError(111, "Connect call failed ('127.0.0.1', 9)"), "nothing listens there"),
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "host name is not known"),
        (UnicodeError("label too long"), "host name cannot be one"),
        (OSError(113, "No route to host"), "no network leads there"),
        (ConnectionResetError(104, "Connection reset by peer"), "the connection broke"),
        (TimeoutError(), "no answer in time"),
        (not_tls(), "does not speak TLS"),
        (OSError(24, "Too many open files"), "too many open files"),
    ],
)
def test_a_cause_is_told_in_words_however_deep_it_is_wrapped(error: Exception, cause: str) -> None:
    chained = Exception("while asking")
    chained.__cause__ = Wrapped(error)
    for outer in (error, Wrapped(error), chained):
        told = network_cause(outer)
        assert cause in told
        assert "ssl." not in told
        assert "_" not in told


def test_an_unknown_error_is_never_told_by_the_address_of_an_object() -> None:
    assert network_cause(ValueError("bad <object object at 0x7f>")) == "ValueError"
    assert network_cause(ValueError("bad chunk")) == "bad chunk"
    assert not speaks_no_tls(None)


async def test_a_port_that_does_not_speak_tls_is_named_as_the_wrong_port() -> None:
    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    async with (
        await asyncio.start_server(answer, "127.0.0.1", 0) as server,
        aiohttp.ClientSession() as session,
    ):
        port = server.sockets[0].getsockname()[1]
        http = PeerHttp(session, ssl.create_default_context())
        with pytest.raises(Unavailable) as caught:
            async with http.request("GET", f"127.0.0.1:{port}", "/", timeout_s=3.0):
                raise AssertionError("no such connection is possible")
    assert caught.value.detail == f"node 127.0.0.1:{port} cannot be reached: what listens there does not speak TLS"
    assert caught.value.fix == WRONG_PORT_FIX
