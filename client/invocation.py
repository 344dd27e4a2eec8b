"""Calling a started service: at its own address, or through its controller where that cannot be reached."""

from __future__ import annotations

import html
import re
import textwrap
from contextlib import suppress

import aiohttp
import msgspec
import stamina
from yarl import URL

from client.rest import CONNECT_TIMEOUT_S, Rest
from protocol.bounded import read_bounded
from protocol.instances import StartAnswer
from protocol.network_errors import network_cause
from protocol.problems import BadRequest, Conflict, DeadlineExceeded, ServiceError, ServiceUnreachable, Unavailable

MAX_REPLY_BYTES = 256 << 20
MAX_ERROR_BYTES = 4 << 10
MAX_LINE = 160
PATIENCE_S = 3.0
"""How long a refused connection is tried again: an instance that was just restarted needs a moment."""

_GONE_FIX = "See its state with `cornerstore ps`; start it again if it was stopped."
_NO_WORDS = re.compile(r"<(script|style|head)\b.*?</\1\s*>|<[^>]*>", re.DOTALL | re.IGNORECASE)


def check_path(path: str) -> None:
    """Raises BadRequest for what cannot be the path of a service."""
    if not path.startswith("/"):
        raise BadRequest(f"{path[:80]!r} is not a path", fix="A path starts with a slash, such as /wordcount.")


async def invoke(
    session: aiohttp.ClientSession,
    answer: StartAnswer,
    path: str,
    body: bytes | None = None,
    *,
    method: str | None = None,
    content_type: str = "application/octet-stream",
    accept: str = "*/*",
    timeout_s: float = 60.0,
) -> bytes:
    """The body that the service replies to `path`. `method`: POST with a body, else GET. `accept`: the media type that
    the reply shall have, where the service offers several.

    Only connections that could not be opened are tried again: the service has then seen nothing of the request.
    Raises Conflict (the service has no HTTP address), ServiceUnreachable (nobody listens there, or no network leads
    there), Unavailable (it broke off), ServiceError (status 400 or above), DeadlineExceeded.
    """
    if answer.url is None:
        raise Conflict(f"instance {answer.instance} of {answer.service.id} has no TCP port to call")
    check_path(path)
    url = answer.url.rstrip("/") + path
    timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=CONNECT_TIMEOUT_S)
    headers = {"Accept": accept} | ({} if body is None else {"Content-Type": content_type})

    async def attempt() -> bytes:
        async with session.request(
            method or ("GET" if body is None else "POST"), url, data=body, headers=headers, timeout=timeout
        ) as response:
            return await _reply(response, url, answer.instance)

    caller = stamina.AsyncRetryingCaller(attempts=None, timeout=PATIENCE_S, wait_initial=0.05, wait_max=0.5)
    try:
        return await caller(aiohttp.ClientConnectorError, attempt)
    except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
        raise ServiceUnreachable(f"the service at {url} cannot be reached: {_cause(error)}", fix=_GONE_FIX) from error
    except TimeoutError:
        raise DeadlineExceeded(f"the service at {url} did not reply within {timeout_s:g} s") from None
    except (aiohttp.ClientError, ValueError) as error:
        raise Unavailable(f"the service at {url} cannot be reached: {network_cause(error)}", fix=_GONE_FIX) from error


async def relayed(
    rest: Rest, answer: StartAnswer, path: str, body: bytes, *, content_type: str, accept: str, timeout_s: float
) -> bytes:
    """The same through the controller, for a network that does not lead to the service. POST only; as large as the
    controller allows. Raises the controller's own Problem, ControllerUnreachable, ServiceError, DeadlineExceeded."""
    async with rest.request(
        "POST",
        f"/instances/{answer.instance}/invoke",
        params={"path": URL(path).raw_path_qs},
        data=body,
        headers={"Accept": accept, "Content-Type": content_type},
        token=answer.lease.token,
        timeout_s=timeout_s,
        works=True,
        relays=True,
    ) as response:
        return await _reply(response, f"{answer.url}{path}", answer.instance)


def only_posts(answer: StartAnswer) -> ServiceUnreachable:
    return ServiceUnreachable(
        f"no network leads from here to the service at {answer.url}, and its controller passes on only what is POSTed",
        fix="Send a body, or call it from a network that leads there.",
    )


async def _reply(response: aiohttp.ClientResponse, url: str, instance: str) -> bytes:
    if response.status >= 400:
        raise await _error(response, url, instance)
    return await read_bounded(response.content.iter_any(), MAX_REPLY_BYTES, "the reply")


def _cause(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return f"no connection within {CONNECT_TIMEOUT_S:g} s"
    return network_cause(error)


async def _error(response: aiohttp.ClientResponse, url: str, instance: str) -> ServiceError:
    reply = await response.content.read(MAX_ERROR_BYTES)
    return ServiceError(
        f"the service at {url} answered {response.status} {response.reason}",
        fix=f"Its reply says more, or its log: `cornerstore logs {instance}`.",
        answered=response.status,
        reply=plain_reply(reply.decode("utf-8", "replace"), response.content_type),
    )


class _Sentences(msgspec.Struct):
    title: str = ""
    detail: str = ""
    fix: str = ""


def plain_reply(text: str, content_type: str) -> str:
    """The text of an error: of problem+json (RFC 9457) its sentences; of an HTML page, which a person cannot read in a
    terminal, one line of its words."""
    if content_type == "application/problem+json":
        with suppress(msgspec.DecodeError):
            problem = msgspec.json.decode(text, type=_Sentences)
            return " ".join(filter(None, (problem.detail or problem.title, problem.fix))) or text
    if content_type != "text/html" and not text.lstrip()[:9].lower().startswith(("<!doctype", "<html")):
        return text
    words = html.unescape(_NO_WORDS.sub(" ", text)).split()
    return textwrap.shorten(" ".join(words), MAX_LINE, placeholder=" …")
