"""`<data-dir>/leases.json` (mode 0600): the leases of what was started from here, so that nobody pastes tokens."""

from __future__ import annotations

from pathlib import Path

import msgspec
from msgspec import Struct

from node.files import replace_file
from protocol.instances import MAX_LEASES_SENT, StartAnswer
from protocol.problems import BadRequest, ConfigError

FILE_NAME = "leases.json"
MAX_KEPT = 1000
MIN_PREFIX = 4
"""Characters of an instance id that may stand for the whole."""


class KeptLease(Struct, frozen=True):
    """`controller`: the URL through which the lease works, `host`: of the controller that hosts, where it works too;
    `url`: the service's own address."""

    token: str
    controller: str
    service: str
    url: str | None = None
    expires_at: float | None = None
    host: str = ""


class LeaseBook:
    """Read and written whole at each call: two commands at once may lose the older entry, never the file."""

    def __init__(self, data_dir: Path) -> None:
        self._path = data_dir / FILE_NAME

    def remember(self, answer: StartAnswer, controller: str) -> None:
        leases = self._read()
        leases.pop(answer.instance, None)
        leases[answer.instance] = KeptLease(
            answer.lease.token,
            controller,
            answer.service.id,
            answer.url,
            answer.lease.expires_at,
            answer.lease.controller,
        )
        self._write(dict(list(leases.items())[-MAX_KEPT:]))

    def forget(self, instance: str) -> None:
        leases = self._read()
        if leases.pop(instance, None) is not None:
            self._write(leases)

    def tokens(self, controller: str) -> tuple[str, ...]:
        """Those that this controller gave, the newest first: a start renews one rather than taking another."""
        newest = [kept.token for kept in reversed(self._read().values()) if kept.controller == controller]
        return tuple(newest[:MAX_LEASES_SENT])

    def find(self, text: str) -> tuple[str, KeptLease | None]:
        """The instance that `text` names, whole or by its unique beginning, and its lease if one is kept here.

        Raises BadRequest if the beginning fits several.
        """
        leases = self._read()
        if text in leases:
            return text, leases[text]
        fitting = [instance for instance in leases if instance.startswith(text)] if len(text) >= MIN_PREFIX else []
        if len(fitting) > 1:
            raise BadRequest(
                f"{text!r} fits {len(fitting)} instances: {', '.join(fitting[:4])}", fix="Write more of it."
            )
        return (fitting[0], leases[fitting[0]]) if fitting else (text, None)

    def _read(self) -> dict[str, KeptLease]:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=dict[str, KeptLease])
        except FileNotFoundError:
            return {}
        except (OSError, msgspec.MsgspecError) as error:
            raise ConfigError(
                f"{self._path} cannot be read: {error}", fix="Move it away; leases end by themselves."
            ) from None

    def _write(self, leases: dict[str, KeptLease]) -> None:
        replace_file(self._path, msgspec.json.encode(leases))
