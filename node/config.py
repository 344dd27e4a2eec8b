"""`<data-dir>/config.toml`: what an operator may set. Written by init and join, read by `up`."""

from __future__ import annotations

import re
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from node.connections import MAX_CONNECTIONS, MAX_OF_ONE_ADDRESS
from node.files import replace_file
from protocol.addresses import MAX_HOST_PORT, WHOLE_ADDRESS, in_words
from protocol.identifiers import check_region
from protocol.instances import AliveTime
from protocol.peers import Role
from protocol.problems import BadRequest, ConfigError
from protocol.records import Address
from protocol.service import DEFAULT_PROCESSES, LinuxCapability

FILE_NAME = "config.toml"
DEFAULT_DATA_DIR = Path("~/.local/share/cornerstore")
DEFAULT_REST_PORT = 7400
DEFAULT_PEER_PORT = 7401
DEFAULT_ALIVE_PORT = 5001

_UNKNOWN_KEY = re.compile(r"unknown field `(?P<key>[^`]*)`(?: - at `\$\.(?P<table>[\w.]+)`)?")
"""As msgspec says it."""

Port = Annotated[int, Meta(ge=1, le=65535)]
HostPort = Annotated[str, Meta(pattern=WHOLE_ADDRESS, max_length=MAX_HOST_PORT)]
Processes = Annotated[int, Meta(ge=1, le=65536)]


class Network(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`host`: the address that phones and peers reach; empty: the LAN address of this machine.

    A port that is not named falls back to a free one when its default is taken; a named one must be free.
    `advertise`: further addresses (host:port of the node-to-node listener), such as a port forward on a router.
    `max_connections`, `max_connections_per_address`: of each of the two TCP listeners.
    """

    host: str = ""
    rest_port: Port | None = None
    peer_port: Port | None = None
    dht_port: Port | None = None
    mdns: bool = True
    advertise: Annotated[tuple[Address, ...], Meta(max_length=3)] = ()
    max_connections: Annotated[int, Meta(ge=1, le=65536)] = MAX_CONNECTIONS
    max_connections_per_address: Annotated[int, Meta(ge=1, le=65536)] = MAX_OF_ONE_ADDRESS


class Mesh(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`bootstrap`: UDP addresses (host:port) of members known when this node joined; later ones are remembered."""

    bootstrap: tuple[HostPort, ...] = ()


class ContentCache(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`upload_mbit_s` 0: as fast as the line."""

    quota_gb: Annotated[float, Meta(gt=0)] = 20.0
    upload_mbit_s: Annotated[float, Meta(ge=0)] = 0.0
    max_uploads: Annotated[int, Meta(ge=1, le=1024)] = 32


class Docker(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`url` empty: DOCKER_HOST or the local socket. `base_image_aliases`: what a Dockerfile's FROM is read as.
    `sandboxes`: networks that wait for the next services, so that these start faster; 0: none.
    `image_quota_gb`: disk for services' images; unused ones beyond it are removed.
    Builds are strangers' code: each may use `build_memory_mb`, and with `build_network` none it reaches nothing.
    `subnets`: where a service's group may choose its own. `allow_capabilities`, `max_processes`: how far a service may
    ask to be less confined on this machine; left out: as far as the region allows.
    """

    enabled: bool = True
    url: str = ""
    build_memory_mb: Annotated[int, Meta(ge=64)] = 1024
    build_network: Literal["bridge", "none"] = "bridge"
    subnets: tuple[str, ...] = ("172.16.0.0/12",)
    base_image_aliases: dict[str, str] = {}
    sandboxes: Annotated[int, Meta(ge=0, le=16)] = 2
    image_quota_gb: Annotated[float, Meta(gt=0)] = 20.0
    allow_capabilities: tuple[LinuxCapability, ...] | None = None
    max_processes: Processes | None = None


class Wasm(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The embedded runtime for WebAssembly modules. It needs no engine."""

    enabled: bool = True


class Agent(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`memory_mb` 0: half of the machine's memory. `controller`: skip mDNS and dial this host:port.
    `pause_after_s`: freeze services that nobody used for so long; 0: never.
    `ready_timeout_s`: how long a service that was started may take until it is ready.
    """

    memory_mb: Annotated[int, Meta(ge=0)] = 0
    alive_port: Port = DEFAULT_ALIVE_PORT
    labels: dict[str, str] = {}
    controller: str = ""
    pause_after_s: Annotated[float, Meta(ge=0)] = 0.0
    ready_timeout_s: Annotated[float, Meta(gt=0)] = 300.0
    docker: Docker = Docker()
    wasm: Wasm = Wasm()


class Controller(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`max_uploads`, `max_downloads`: archives that phones and developers send and fetch at once.

    `starts_per_client_s` (0: any number), `starts_burst`: requests for services of one address. `max_starts`: of
    all, under way at once. `starts_per_agent`: services that are being started at once, for each agent;
    `max_queued_starts` more wait for their turn, or for memory, each at most `queue_wait_s`.
    `prefer_warm_within_ms`: rather than build a service here, use it where it runs already, if that region is at
    most so long a round trip away; 0: never. `allow_capabilities`, `max_processes`: how far agents of the region
    may let a service be less confined than by default. `shortest_alive_s`, `longest_alive_s`: what clients get that
    ask for less or more; with `longest_alive_s` (0: no bound of this region's own) nothing lives until stopped.
    """

    max_archive_mb: Annotated[int, Meta(ge=1, le=65536)] = 256
    max_uploads: Annotated[int, Meta(ge=1, le=1024)] = 4
    max_downloads: Annotated[int, Meta(ge=1, le=1024)] = 16
    starts_per_client_s: Annotated[float, Meta(ge=0, le=100_000)] = 50.0
    starts_burst: Annotated[int, Meta(ge=1, le=100_000)] = 200
    max_starts: Annotated[int, Meta(ge=1, le=100_000)] = 1024
    prefer_warm_within_ms: Annotated[float, Meta(ge=0, le=10_000)] = 0.0
    allow_capabilities: tuple[LinuxCapability, ...] = ()
    max_processes: Processes = DEFAULT_PROCESSES
    starts_per_agent: Annotated[int, Meta(ge=1, le=1024)] = 8
    max_queued_starts: Annotated[int, Meta(ge=0, le=10_000)] = 64
    queue_wait_s: Annotated[float, Meta(ge=0, le=3600)] = 30.0
    shortest_alive_s: AliveTime = 0
    longest_alive_s: AliveTime = 0


class NodeConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    mesh: str
    region: str
    site: str = "site"
    roles: Annotated[tuple[Role, ...], Meta(min_length=1)] = ("controller", "agent", "store")
    network: Network = Network()
    dht: Mesh = Mesh()
    content: ContentCache = ContentCache()
    agent: Agent = Agent()
    controller: Controller = Controller()

    @classmethod
    def load(cls, data_dir: Path) -> NodeConfig:
        """Raises ConfigError that names the file, the key and the way out."""
        path = data_dir / FILE_NAME
        try:
            config = msgspec.toml.decode(path.read_bytes(), type=cls)
            check_region(config.region)
        except FileNotFoundError:
            raise ConfigError(
                f"{path} does not exist: this machine belongs to no mesh yet",
                fix="Make a mesh with `cornerstore bootstrap init`, or join one: `cornerstore bootstrap join TOKEN`.",
            ) from None
        except (msgspec.MsgspecError, UnicodeDecodeError, BadRequest) as error:
            fix = f"{_hint(str(error))}Correct the file; docs/operations.md lists every key."
            raise ConfigError(f"{path}: {in_words(str(error))}", fix=fix) from None
        except OSError as error:
            raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
        return config

    def save(self, data_dir: Path) -> None:
        """Write config.toml so that a crash leaves the old file or the new one. Raises ConfigError, DiskFull."""
        replace_file(data_dir / FILE_NAME, msgspec.toml.encode(_without_none(msgspec.to_builtins(self))))


def _without_none(value: object) -> object:
    """TOML has no null: an unset key is a missing key."""
    if isinstance(value, dict):
        return {k: _without_none(v) for k, v in value.items() if v is not None}
    return value


def _hint(message: str) -> str:
    """What a person may have meant who wrote what the reader objects to."""
    if message.startswith("Cannot declare"):
        return "A table stands in the file once: add the lines to the one that is there. "
    meant = _meant_key(message)
    return f"Perhaps `{meant}` was meant. " if meant else ""


def _meant_key(message: str) -> str:
    """The key that stands in the same table and looks like the unknown one that `message` names, if there is one."""
    unknown = _UNKNOWN_KEY.search(message)
    if unknown is None:
        return ""
    table: Any = NodeConfig
    for part in (unknown["table"] or "").split("."):
        table = next((field.type for field in msgspec.structs.fields(table) if field.name == part), table)
    return next(iter(get_close_matches(unknown["key"], [f.name for f in msgspec.structs.fields(table)], n=1)), "")
