from __future__ import annotations

from protocol.instances import InstanceReport, PortBinding, State
from protocol.link import MAX_FRAME, Hello, Resources, decode_from_agent, encode, fitted


def a_hello(instances: int, *, digests: int = 4096, state: State = State.RUNNING) -> Hello:
    names = tuple(f"sha256:{n:064d}" for n in range(digests))
    return Hello(
        version=1,
        node="a" * 40,
        mesh="m",
        region="eu/de",
        host="10.0.0.1",
        labels={"site": "campus"},
        resources=Resources(1000, 1000, names, names, ("docker",)),
        instances=tuple(
            InstanceReport(
                instance=f"{n:016x}",
                digest=names[0],
                service_id="wc01",
                service_name="w" * 128,
                state=state if n else State.STOPPED,
                mem=100,
                host="10.0.0.1",
                ports=tuple(PortBinding(8000 + p, 40000 + p, "tcp", "d" * 40) for p in range(4)),
                reason="r" * 10_000,
                log=("x" * 500,) * 20,
            )
            for n in range(instances)
        ),
    )


def test_five_hundred_instances_with_full_logs_fit_one_frame() -> None:
    hello = a_hello(500)
    assert len(encode(hello)) > 10 * MAX_FRAME
    frame = encode(fitted(hello))
    assert len(frame) <= MAX_FRAME
    heard = decode_from_agent(frame)
    assert isinstance(heard, Hello)
    assert {r.instance for r in heard.instances} == {r.instance for r in hello.instances}
    assert not any(r.log for r in heard.instances)
    assert 0 < len(heard.resources.cached) == len(heard.resources.built) < 4096


def test_a_small_hello_keeps_everything_but_logs() -> None:
    heard = fitted(a_hello(2, digests=5))
    assert (len(heard.instances), len(heard.resources.cached), len(heard.resources.built)) == (2, 5, 5)


def test_what_holds_memory_is_said_first_where_even_instances_are_too_many() -> None:
    heard = fitted(a_hello(5000))
    assert len(encode(heard)) <= MAX_FRAME
    assert 500 < len(heard.instances) < 5000
    assert all(r.state is State.RUNNING for r in heard.instances)
