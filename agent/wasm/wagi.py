"""WAGI: an HTTP request as a WebAssembly module sees it, and the answer that it writes. Pure.

The request's head is in the environment (CGI, RFC 3875 section 4.1), its body on standard input. The module writes CGI
headers, an empty line and the body to standard output (section 6). Source: the WAGI specification, version 0.4, of
Deis Labs; what differs is said at the functions.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from urllib.parse import unquote

from msgspec import Struct

from protocol.problems import BadRequest, ServiceError

MAX_HEAD = 16 << 10
"""Bytes of CGI headers that an answer may have."""

_HIDDEN = frozenset({"AUTHORIZATION", "CONNECTION", "CONTENT_LENGTH", "CONTENT_TYPE", "PROXY"})
"""Not given as HTTP_*: WAGI hides credentials and the connection; a header `Proxy` would become HTTP_PROXY (httpoxy);
the other two have variables of their own."""

_HOP_BY_HOP = frozenset({"connection", "content-length", "keep-alive", "status", "trailer", "transfer-encoding"})
_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,128}")
_STATUS = re.compile(r"([2-5][0-9][0-9])(?: .*)?")


class Head(Struct, frozen=True, kw_only=True):
    """A request without its body. `path` is still percent-encoded, `query` is what follows the `?`."""

    method: str
    path: str
    query: str
    headers: tuple[tuple[str, str], ...]
    host: str
    port: int
    remote: str
    protocol: str = "HTTP/1.1"


class Answer(Struct, frozen=True):
    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes


def environment(head: Head, length: int, own: Mapping[str, str]) -> list[tuple[str, str]]:
    """Every variable of a request with a body of `length` bytes. The service's `own` variables never replace CGI's.

    Raises BadRequest for a path that no string of C can hold.
    """
    path = unquote(head.path, errors="replace") or "/"
    if "\0" in path:
        raise BadRequest("the path holds a zero byte", fix="Leave out %00.")
    headers = _variables(head.headers)
    cgi = {
        "AUTH_TYPE": "",
        "CONTENT_LENGTH": str(length),
        "CONTENT_TYPE": headers.get("CONTENT_TYPE", ""),
        "GATEWAY_INTERFACE": "CGI/1.1",
        "PATH_INFO": path,
        "PATH_TRANSLATED": path,
        "QUERY_STRING": head.query,
        "REMOTE_ADDR": head.remote,
        "REMOTE_HOST": head.remote,
        "REMOTE_USER": "",
        "REQUEST_METHOD": head.method,
        "SCRIPT_NAME": "",
        "SERVER_NAME": head.host,
        "SERVER_PORT": str(head.port),
        "SERVER_PROTOCOL": head.protocol,
        "SERVER_SOFTWARE": "Cornerstore",
        "X_FULL_URL": f"http://{head.host}:{head.port}{head.path}{'?' if head.query else ''}{head.query}",
        "X_MATCHED_ROUTE": "/...",
        "X_RAW_PATH_INFO": head.path,
    }
    http = {f"HTTP_{name}": value for name, value in headers.items() if name not in _HIDDEN}
    return [(name, _utf8(value)) for name, value in {**own, **http, **cgi}.items() if "\0" not in value]


def arguments(module: str, query: str) -> list[str]:
    """The module's name, then the query's parts as they stand."""
    return [module, *(_utf8(part) for part in query.split("&") if part)]


def parse_answer(output: bytes) -> Answer:
    """The answer that a module wrote. Raises ServiceError if it is none: a client must not guess.

    WAGI wants Content-Type or Location; a Status alone is accepted, too. Content-Length and other headers of the
    connection are the server's: they are left out.
    """
    head, body = _split(output)
    headers = tuple(_header(line) for line in head.splitlines() if line)
    known = {name.lower(): value for name, value in headers}
    if not {"content-type", "location", "status"} & known.keys():
        raise _not_an_answer("it begins with neither Content-Type, Location nor Status")
    status = 302 if "location" in known else 200
    if "status" in known:
        found = _STATUS.fullmatch(known["status"])
        if found is None:
            raise _not_an_answer(f"its Status is {known['status'][:40]!r}")
        status = int(found[1])
    return Answer(status, tuple(h for h in headers if h[0].lower() not in _HOP_BY_HOP), body)


def _variables(headers: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Header fields by their CGI names. Repeated ones are one list (RFC 9110 section 5.3).

    A name with an underscore is dropped: it would be taken for the one with a hyphen.
    """
    found: dict[str, str] = {}
    for name, value in headers:
        if "_" in name:
            continue
        variable = name.upper().replace("-", "_")
        found[variable] = f"{found[variable]}, {value}" if variable in found else value
    return found


def _split(output: bytes) -> tuple[str, bytes]:
    """Head and body; lines may end in LF or CRLF."""
    ends = [(at, len(mark)) for mark in (b"\n\n", b"\r\n\r\n") if (at := output.find(mark, 0, MAX_HEAD + 4)) >= 0]
    if not ends:
        raise _not_an_answer("no empty line ends its headers")
    at, length = min(ends)
    return output[:at].decode("utf-8", errors="replace"), output[at + length :]


def _header(line: str) -> tuple[str, str]:
    name, colon, value = line.partition(":")
    value = value.strip()
    if not colon or not _NAME.fullmatch(name) or not value.isprintable():
        raise _not_an_answer(f"{line[:40]!r} is no header")
    return name, value


def _not_an_answer(why: str) -> ServiceError:
    return ServiceError(
        f"the service did not answer as WAGI wants: {why}",
        fix="A module writes `Content-Type: text/plain`, an empty line and the body to standard output.",
    )


def _utf8(text: str) -> str:
    """Bytes that were no UTF-8 (surrogates, in Python) become replacement characters: WASI strings are UTF-8."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
