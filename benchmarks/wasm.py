"""The word count as a WebAssembly module, beside a Flask container that counts the same words.

Cold start: from the request at the controller (the module is compiled and cached) until the service answers, beside
`docker run -d` of the Flask image until it answers at the container's own address. Throughput: requests answered in
`LOAD_S` over `CONNECTIONS` kept-alive connections, both services started by the same site and called through the same
port proxy; the container at its own address, and a bottle container, stand beside them.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import tempfile
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp

from benchmarks.containers import docker, measured, until_answered
from benchmarks.one_site import one_site
from benchmarks.report import finish, median_ratio, summary
from client.controller import ControllerClient
from protocol.instances import StartAnswer, StartRequest

COLD_RUNS = 20
LOAD_RUNS = 5
LOAD_S = 4.0
CONNECTIONS = 8
TEXT = b"a shop at every corner " * 180
WORDS = 900
MODULE = Path(__file__).resolve().parent.parent / "services" / "word_count_wasm"
PHASES = ("resolve", "place", "start", "ready", "total")

FLASK = {
    "flask.yaml": """tosca_definitions_version: tosca_simple_profile_for_microservices_1_0_0
topology_template:
  node_templates:
    wordcount:
      type: tosca.nodes.microservices.docker_container
      properties:
        {id: fl01, name: wordcount-flask, category: /text/word_count, directory: app, container_port: 8080,
         mem_requirement: 128, alive_time: 600}
""",
    "app/Dockerfile": """FROM python:3.6-alpine
RUN pip install flask==3.1.2
COPY app.py .
CMD ["python", "app.py"]
""",
    "app/app.py": """from flask import Flask, request

app = Flask(__name__)


@app.get("/")
def about():
    return "Word count"


@app.post("/wordcount")
def word_count():
    return str(len(request.get_data(as_text=True).split()))


app.run(host="0.0.0.0", port=8080, threaded=True)
""",
}


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        flask = Path(folder) / "flask"
        write(flask, FLASK)
        async with one_site() as (site, client), aiohttp.ClientSession() as session:
            for service in (MODULE, flask):
                await site.cornerstore("--controller", site.running.rest, "publish", str(service))
            first = await started(client, session, "wc02")
            await client.remove(first.instance, first.lease.token)
            fl01 = await started(client, session, "fl01")
            cold, docker_run, phases = await cold_starts(client, session, image_of(fl01))
            urls = {s: (await started(client, session, s)).url or "" for s in ("wc02", "fl01", "wc01")}
            rates = await loads({**urls, "fl01 direct": address_of(fl01)})
            node = site.running.node
    docker_remove(node)
    finish(
        "wasm",
        runs=COLD_RUNS,
        ours={
            "cold_ms": summary(cold),
            "phases_ms": {phase: summary(values)["p50"] for phase, values in phases.items()},
            "first_ever_ms": first.timings_ms,
            "requests_per_s": summary(rates["wc02"]),
        },
        reference={
            "flask_docker_run_ms": summary(docker_run),
            "flask_requests_per_s": summary(rates["fl01"]),
            "flask_direct_requests_per_s": summary(rates["fl01 direct"]),
            "bottle_requests_per_s": summary(rates["wc01"]),
        },
        ratios={
            "cold": median_ratio(cold, docker_run),
            "throughput": median_ratio(rates["wc02"], rates["fl01"]),
            "throughput_over_flask_direct": median_ratio(rates["wc02"], rates["fl01 direct"]),
            "throughput_over_bottle": median_ratio(rates["wc02"], rates["wc01"]),
        },
    )


async def started(client: ControllerClient, session: aiohttp.ClientSession, service: str) -> StartAnswer:
    answer = await client.start(StartRequest(service=service, alive_time=3600))
    await until_answered(session, f"{answer.url}/")
    print(f"{service}: {answer.start}, {answer.timings_ms}", file=sys.stderr)
    return answer


async def cold_starts(
    client: ControllerClient, session: aiohttp.ClientSession, image: str
) -> tuple[list[float], list[float], Mapping[str, list[float]]]:
    """Ours and the reference in turn, in ms, and our phases."""
    ours: list[float] = []
    reference: list[float] = []
    phases: dict[str, list[float]] = {phase: [] for phase in PHASES}
    for run in range(COLD_RUNS):
        answers: list[StartAnswer] = []
        ours.append(await measured(partial(start_module, client, session, answers)))
        for phase in PHASES:
            phases[phase].append(answers[0].timings_ms.get(phase, 0.0))
        await client.remove(answers[0].instance, answers[0].lease.token)
        containers: list[str] = []
        reference.append(await measured(partial(run_flask, session, image, containers)))
        docker("rm", "-f", containers[0])
        print(f"run {run}: ours {ours[-1]:.1f} ms, docker run {reference[-1]:.0f} ms", file=sys.stderr)
    return ours, reference, phases


async def start_module(client: ControllerClient, session: aiohttp.ClientSession, out: list[StartAnswer]) -> None:
    answer = await client.start(StartRequest(service="wc02", alive_time=3600))
    await until_answered(session, f"{answer.url}/")
    if answer.start != "cold":
        raise SystemExit(f"the start was {answer.start}")
    out.append(answer)


async def run_flask(session: aiohttp.ClientSession, image: str, out: list[str]) -> None:
    container = await asyncio.to_thread(docker, "run", "-d", "--init", "--memory", "128m", image)
    await until_answered(session, f"{await asyncio.to_thread(address, container)}/")
    out.append(container)


async def loads(urls: Mapping[str, str]) -> dict[str, list[float]]:
    """Requests per second of each service, in turn."""
    rates: dict[str, list[float]] = {name: [] for name in urls}
    for run in range(LOAD_RUNS):
        for name, url in urls.items():
            rates[name].append(await rate(url))
            print(f"load {run}: {name} {rates[name][-1]:.0f} requests/s", file=sys.stderr)
    return rates


async def rate(url: str) -> float:
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    end = time.perf_counter() + LOAD_S
    callers = (_call_until(end, parts.hostname, parts.port) for _ in range(CONNECTIONS))
    return sum(await asyncio.gather(*callers)) / LOAD_S


async def _call_until(end: float, host: str, port: int) -> int:
    """Calls one after another over one connection, or a new one where the server ends it. Returns how many it answered.

    A call whose connection is reset does not count; that is the server's loss.
    """
    request = b"POST /wordcount HTTP/1.1\r\nHost: %b:%d\r\nContent-Length: %d\r\n\r\n%b"
    message = request % (host.encode(), port, len(TEXT), TEXT)
    answered = 0
    while time.perf_counter() < end:
        try:
            reader, writer = await asyncio.open_connection(host, port)
        except ConnectionError:
            continue
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, TimeoutError):
            keep = True
            while keep and time.perf_counter() < end:
                async with asyncio.timeout(LOAD_S):
                    keep = await _call(reader, writer, message)
                answered += 1
        writer.close()
    return answered


async def _call(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, message: bytes) -> bool:
    """One call. False if the server ends the connection after it."""
    writer.write(message)
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    reply = await reader.readexactly(int(head.partition(b"content-length:")[2].split(b"\r\n", 1)[0]))
    if int(reply) != WORDS:
        raise SystemExit(f"the service counted {reply!r}")
    return b"connection: close" not in head and not head.startswith(b"http/1.0")


def docker_remove(node: str) -> None:
    """Containers outlive their node on purpose; a benchmark leaves none."""
    for container in docker("ps", "-aq", "--filter", f"label=cornerstore.node={node}").split():
        docker("rm", "-f", container)


def image_of(answer: StartAnswer) -> str:
    return docker("inspect", "-f", "{{.Config.Image}}", _container(answer))


def address_of(answer: StartAnswer) -> str:
    return address(_container(answer))


def address(container: str) -> str:
    """A container's own URL. One that shares another's network has that one's."""
    mode = docker("inspect", "-f", "{{.HostConfig.NetworkMode}}", container)
    if mode.startswith("container:"):
        container = mode.partition(":")[2]
    found = docker("inspect", "-f", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", container)
    return f"http://{found}:8080"


def _container(answer: StartAnswer) -> str:
    return docker("ps", "-q", "--filter", f"label=cornerstore.instance={answer.instance}").split()[0]


def write(folder: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


if __name__ == "__main__":
    asyncio.run(main())
