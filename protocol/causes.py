"""Why a host does not take a service, in one word: `Problem.extra["cause"]`, so that the fix can fit the reason."""

from __future__ import annotations

from enum import StrEnum

from protocol.problems import ContentNotFound, CorruptContent, DiskUnusable, EngineUnavailable, Overloaded, Problem


class Cause(StrEnum):
    """CONTENT: the archive cannot be had. RUNTIME: nothing here runs its kind. ENGINE: what runs it does not answer.
    POLICY: the service wants to be less confined than the region allows. CONFINEMENT: than the machine's operator does.
    LATENCY: it is too far away, or the service itself too slow. ACCURACY: no variant is accurate enough. AWAY: the host
    itself does not answer. BUSY: more is asked of it than it can start. EMPTY: a region without agents."""

    CONTENT = "content"
    RUNTIME = "runtime"
    ENGINE = "engine"
    LABEL = "label"
    POLICY = "policy"
    CONFINEMENT = "confinement"
    ACCURACY = "accuracy"
    LATENCY = "latency"
    MEMORY = "memory"
    DISK = "disk"
    AWAY = "away"
    BUSY = "busy"
    EMPTY = "empty"


def cause_of(problem: Problem) -> Cause:
    """The cause that the problem names, else the one that its class implies."""
    named = problem.extra.get("cause")
    if isinstance(named, str) and named in set(Cause):
        return Cause(named)
    match problem:
        case ContentNotFound() | CorruptContent():
            return Cause.CONTENT
        case EngineUnavailable():
            return Cause.ENGINE
        case Overloaded():
            return Cause.BUSY
        case DiskUnusable():
            return Cause.DISK
        case _:
            return Cause.AWAY
