"""Every error that Cornerstore shows to the outside, as one tree.

A class carries its HTTP status, its slug and its title; an instance adds what happened (`detail`) and what the
reader can do about it (`fix`). One middleware writes them as RFC 9457 `application/problem+json`; the client turns
the JSON back into the same class. Foreign exceptions are translated once, at the module that owns the library.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

TYPE_PREFIX = "https://cornerstore.dev/problems/"
"""Prefix of the RFC 9457 `type` member; the slug follows."""


class Problem(Exception):
    """Root of the tree. `extra` holds further members of the JSON object (RFC 9457 section 3.2)."""

    status: ClassVar[int] = 500
    slug: ClassVar[str] = "internal-error"
    title: ClassVar[str] = "Something went wrong inside this node"

    def __init__(self, detail: str = "", /, *, fix: str = "", **extra: Any) -> None:
        super().__init__(detail or self.title)
        self.detail = detail or self.title
        self.fix = fix
        self.extra: dict[str, Any] = extra

    def to_dict(self) -> dict[str, Any]:
        """The members of the problem+json object; `fix` says what to do next."""
        body: dict[str, Any] = {
            "type": TYPE_PREFIX + self.slug,
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
        }
        if self.fix:
            body["fix"] = self.fix
        return {**self.extra, **body}

    @staticmethod
    def from_dict(body: Mapping[str, Any]) -> Problem:
        """The exception that a problem+json object describes; an unknown type gives a plain `Problem`."""
        slug = str(body.get("type", "")).removeprefix(TYPE_PREFIX)
        kind = next((c for c in _tree(Problem) if c.slug == slug), Problem)
        extra = {str(k): v for k, v in body.items() if k not in _MEMBERS}
        problem = kind(str(body.get("detail", "")), fix=str(body.get("fix", "")))
        problem.extra.update(extra)  # not as keywords: the sender chose their names
        return problem

    @property
    def retry_after(self) -> float | None:
        """Seconds for the `Retry-After` header, where waiting helps."""
        value = self.extra.get("retry_after")
        return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


_MEMBERS = frozenset({"type", "title", "status", "detail", "fix"})


def _tree(root: type[Problem]) -> Iterator[type[Problem]]:
    yield root
    for child in root.__subclasses__():
        yield from _tree(child)


# --- what the caller sent -------------------------------------------------------------------------------------------


class BadRequest(Problem):
    status, slug, title = 400, "bad-request", "The request cannot be understood"


class BadLimit(BadRequest):
    slug, title = "bad-limit", "A page cannot hold so many"


class BadCursor(BadRequest):
    """Also for what was a cursor: of another controller, or from before its restart."""

    slug, title = "bad-cursor", "No page of this list begins there"


class InvalidArchive(Problem):
    """`extra`: `code` (stable, kebab-case), `file` and `line` inside the archive where they are known."""

    status, slug, title = 422, "invalid-archive", "The archive is not a valid CSAR"


class InvalidRecord(Problem):
    status, slug, title = 422, "invalid-record", "The record is malformed, unsigned, expired or too large"


class TooLarge(Problem):
    status, slug, title = 413, "too-large", "More data was sent than this node accepts"


class KeyNeeded(Problem):
    status, slug, title = 401, "key-needed", "This call needs a key or a lease token"


class Forbidden(Problem):
    status, slug, title = 403, "forbidden", "The key or token does not allow this"


class NotFound(Problem):
    status, slug, title = 404, "not-found", "There is no such thing here"


class MethodNotAllowed(Problem):
    status, slug, title = 405, "method-not-allowed", "This path does not take that method"


class NoMatchingService(NotFound):
    slug, title = "no-matching-service", "No published service matches the request"


class UnknownInstance(NotFound):
    slug, title = "no-such-instance", "There is no such instance"


class InstanceEnded(UnknownInstance):
    """It was there. `extra`: `reason` of its end, `ended_at` in Unix s."""

    status, slug, title = 410, "instance-ended", "The instance has ended"


class ContentNotFound(NotFound):
    slug, title = "content-not-found", "Nobody in the mesh offers this content"


class AmbiguousService(Problem):
    """`extra`: `candidates`, a list of `{digest, id, name, publisher}`."""

    status, slug, title = 409, "ambiguous-service", "Several different services fit the request"


class Conflict(Problem):
    status, slug, title = 409, "conflict", "The present state does not allow this"


class TooManyRequests(Problem):
    status, slug, title = 429, "too-many-requests", "Too many requests at once"


# --- what the region cannot do now ----------------------------------------------------------------------------------


class Unavailable(Problem):
    """Peers were slow or away: *not* the same as "not found"."""

    status, slug, title = 503, "unavailable", "The mesh did not answer in time"


class ServiceUnreachable(Unavailable):
    """The caller could open no connection, so the service has seen nothing of the call."""

    slug, title = "service-unreachable", "The service's address cannot be reached from here"


class NoCapacity(Unavailable):
    """`extra`: `regions`, a map of region to the reason why it cannot host; `retry_after` in seconds."""

    slug, title = "no-capacity", "No agent in reach can host the service now"


class RelaxationRefused(NoCapacity):
    """To wait does not help: somebody has to allow it."""

    status, slug, title = 403, "relaxation-refused", "The service wants to be less confined than it may be here"


class Overloaded(Unavailable):
    """Nothing is wrong, there is just too much to do. `extra`: `retry_after` in seconds, at the rate of the moment."""

    slug, title = "overloaded", "More services are asked for than can be started now"


class EngineUnavailable(Unavailable):
    slug, title = "engine-unavailable", "The container engine does not answer"


class DiskUnusable(Problem):
    """Of this node: it cannot read or write what it keeps."""

    status, slug, title = 507, "disk-unusable", "The node's disk cannot be used"


class DiskFull(DiskUnusable):
    slug, title = "disk-full", "There is no room left for this"


class DeadlineExceeded(Problem):
    status, slug, title = 504, "deadline-exceeded", "The work was not done within the time asked for"


class BuildFailed(Problem):
    """`extra`: `log`, the last lines of the build."""

    status, slug, title = 502, "build-failed", "The service's image could not be built"


class StartFailed(Problem):
    """`extra`: `log`, the last lines that the service wrote; `reason`."""

    status, slug, title = 502, "start-failed", "The service started but did not stay up"


class ServiceError(Problem):
    """A started service's own error. `extra`: `answered`, its HTTP status; `reply`, the beginning of its body."""

    status, slug, title = 502, "service-error", "The service answered with an error"


class CorruptContent(Problem):
    status, slug, title = 502, "corrupt-content", "The content received is not what its digest promises"


# --- an operator's bad moments --------------------------------------------------------------------------------------


class ConfigError(Problem):
    slug, title = "bad-config", "The configuration cannot be used"


class PortTaken(Problem):
    """Another program listens there, or the address is not of this machine: `detail` says which."""

    status, slug, title = 409, "port-taken", "The address cannot be bound"


class JoinRefused(Problem):
    """`extra`: `code`, one of expired, spent, clock, unreachable, mesh, region, state, role, token."""

    status, slug, title = 403, "join-refused", "The invitation was not accepted"


class ControllerUnreachable(Problem):
    status, slug, title = 503, "controller-unreachable", "No controller answers"
