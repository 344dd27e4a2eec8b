"""`<data-dir>/ports.json`: the TCP ports that a node had, so that whoever knows them finds it there again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
import structlog

from node.files import replace_file
from protocol.problems import Problem

log = structlog.get_logger(__name__)

FILE_NAME = "ports.json"
Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]


class Ports(msgspec.Struct, frozen=True):
    """0: none yet."""

    rest: Port = 0
    peer: Port = 0


def last_ports(data_dir: Path) -> Ports:
    """None where the file is missing or no such file: then the node takes what is free, as at its first start."""
    try:
        return msgspec.json.decode((data_dir / FILE_NAME).read_bytes(), type=Ports)
    except (OSError, msgspec.MsgspecError):
        return Ports()


def keep_ports(data_dir: Path, ports: Ports) -> None:
    """A disk that takes nothing is told of in the log: the node runs all the same."""
    if ports == last_ports(data_dir):
        return
    try:
        replace_file(data_dir / FILE_NAME, msgspec.json.encode(ports))
    except Problem as problem:
        log.warning("ports-not-kept", error=problem.detail)
