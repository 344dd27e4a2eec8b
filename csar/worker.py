"""The process in which tosca-parser runs: `python -m csar.worker`, a frame in, a frame out.

After the first frame out (`null`: ready), each topology in is answered by a list of `Complaint`. End of input
ends the process, so it never outlives its parent.

What holds it, and what does not: RLIMIT_NOFILE equals the three pipes it has, so the kernel refuses every new
descriptor: no file, no socket, no pipe. RLIMIT_AS bounds memory, RLIMIT_CPU the processor time of each job, and the
parent kills it after its wall time. The environment holds no secret. These are resource limits, not a system call
filter: native code running in it as root could raise them again. The vetted input is the first line of defence.
"""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import sys
from typing import Any

import msgspec

from csar.frames import read_frame, write_frame
from csar.tosca import complaints


def _warm_up(port: int) -> dict[str, Any]:
    """A topology that visits most of tosca-parser; it is valid if the port is."""
    properties = {
        "id": "warm",
        "name": "warm",
        "mem_requirement": 1,
        "category": "/warm",
        "container_ports": [{"port": port}],
        "variants": {"a": {"accuracy": 0.5}},
    }
    network = {"type": "tosca.groups.microservices.docker_bridge_network", "members": ["warm"]}
    quality = {"type": "tosca.policies.microservices.QoS", "properties": {"max_latency_ms": 1.0}}
    return {
        "inputs": {"size": {"type": "integer", "default": 1, "constraints": [{"in_range": [1, 2]}]}},
        "node_templates": {"warm": {"type": "tosca.nodes.microservices.docker_container", "properties": properties}},
        "groups": {"net": {**network, "properties": {"name": "warm"}}},
        "policies": [{"quality": quality}],
    }


def main() -> None:
    incoming, outgoing = sys.stdin.buffer, sys.stdout.buffer
    memory, cpu_s = int(sys.argv[1]), int(sys.argv[2])
    logging.disable(logging.CRITICAL)
    # Whatever is imported or read on first use must be here before descriptors run out.
    if complaints(_warm_up(80)) or not complaints(_warm_up(0)):
        raise SystemExit("tosca-parser and the profile do not fit each other")
    _confine(memory)
    write_frame(outgoing, b"null")
    while (frame := read_frame(incoming)) is not None:
        _allow_cpu(cpu_s)
        with contextlib.redirect_stdout(sys.stderr):
            answer = complaints(msgspec.json.decode(frame))
        write_frame(outgoing, msgspec.json.encode(answer))


def _confine(memory: int) -> None:
    os.chdir("/")
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))


def _allow_cpu(seconds: int) -> None:
    """RLIMIT_CPU counts from the start of the process, so the soft limit moves on with each job."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    used = int(usage.ru_utime + usage.ru_stime)
    resource.setrlimit(resource.RLIMIT_CPU, (used + 1 + seconds, resource.RLIM_INFINITY))


if __name__ == "__main__":
    main()
