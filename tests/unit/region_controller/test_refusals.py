from __future__ import annotations

import pytest

from protocol.causes import Cause, cause_of
from protocol.problems import (
    ContentNotFound,
    DiskFull,
    EngineUnavailable,
    NoCapacity,
    Problem,
    RelaxationRefused,
    Unavailable,
)
from region_controller.refusals import asked_by, causes_in, summed_up
from tests.one_region import a_service


@pytest.mark.parametrize(
    ("problem", "cause"),
    [
        (ContentNotFound(), Cause.CONTENT),
        (EngineUnavailable(), Cause.ENGINE),
        (DiskFull(), Cause.DISK),
        (Unavailable("the link dropped"), Cause.AWAY),
        (Unavailable("no provider answers", cause="content"), Cause.CONTENT),
        (NoCapacity("hostile", cause=["content"]), Cause.AWAY),
    ],
)
def test_a_problem_has_a_cause(problem: Problem, cause: Cause) -> None:
    assert cause_of(Problem.from_dict(problem.to_dict())) is cause


@pytest.mark.parametrize(
    ("causes", "kind", "fix"),
    [
        ({Cause.CONTENT}, Unavailable, "has the archive"),
        ({Cause.CONTENT, Cause.EMPTY}, Unavailable, "has the archive"),
        ({Cause.RUNTIME}, NoCapacity, "no-docker"),
        ({Cause.LABEL}, NoCapacity, "agent.labels"),
        ({Cause.MEMORY}, NoCapacity, "memory_mb"),
        ({Cause.ACCURACY}, NoCapacity, "--variant"),
        ({Cause.LATENCY}, NoCapacity, "max_latency_ms"),
        ({Cause.POLICY}, RelaxationRefused, "[controller]"),
        ({Cause.CONFINEMENT, Cause.EMPTY}, RelaxationRefused, "[agent.docker]"),
        ({Cause.POLICY, Cause.MEMORY}, NoCapacity, "[controller]"),
        ({Cause.EMPTY}, NoCapacity, "bootstrap invite"),
        ({Cause.CONTENT, Cause.MEMORY}, NoCapacity, "has the archive"),
        (set[Cause](), NoCapacity, "later"),
    ],
)
def test_the_fix_fits_the_reasons(causes: set[Cause], kind: type[Problem], fix: str) -> None:
    problem = summed_up(a_service(), {"eu": "why"}, causes, 300)
    assert "300 MB" in problem.detail or type(problem) is not NoCapacity
    assert type(problem) is kind
    assert fix in problem.fix
    assert (problem.retry_after is None) is (kind is RelaxationRefused), "to ask again helps only where things change"
    assert problem.extra["regions"] == {"eu": "why"}
    assert causes_in(problem) == causes - ({Cause.EMPTY} if len(causes) > 1 else set())


def test_whom_a_peer_asked_may_be_nonsense_too() -> None:
    node = "ab" * 20
    assert asked_by(NoCapacity("no", asked=[node, 5, "somebody", [node]])) == {node}
    assert asked_by(NoCapacity("no", asked=node)) == asked_by(NoCapacity("no")) == set()


def test_what_a_peer_says_of_causes_may_be_nonsense() -> None:
    assert causes_in(NoCapacity("no", causes=["memory", "magic", 1, ["memory"]])) == {Cause.MEMORY}
    assert causes_in(NoCapacity("no", causes="memory")) == set()
