"""Server-sent events (WHATWG HTML, section 9.2), as far as the REST interface uses them: `event:` and `data:`."""

from __future__ import annotations

from msgspec import Struct

from protocol.problems import TooLarge

MAX_EVENT_BYTES = 1 << 20


class Event(Struct, frozen=True):
    name: str
    data: bytes


class EventParser:
    """Turns the bytes of a `text/event-stream` body, in pieces of any size, into events."""

    def __init__(self) -> None:
        self._pending = b""
        self._name = ""
        self._data: list[bytes] = []
        self._size = 0

    def feed(self, piece: bytes) -> list[Event]:
        """The events that `piece` completes. Raises TooLarge for an event beyond MAX_EVENT_BYTES."""
        *lines, self._pending = (self._pending + piece).split(b"\n")
        if len(self._pending) > MAX_EVENT_BYTES:
            raise TooLarge("the controller sent a line that does not end")
        return [event for line in lines if (event := self._line(line.removesuffix(b"\r"))) is not None]

    def _line(self, line: bytes) -> Event | None:
        if not line:
            return self._dispatch()
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"event":
            self._name = value[:64].decode("ascii", "replace")
        elif field == b"data":
            self._size += len(value)
            if self._size > MAX_EVENT_BYTES:
                raise TooLarge(f"the controller sent an event of more than {MAX_EVENT_BYTES} bytes")
            self._data.append(value)
        return None

    def _dispatch(self) -> Event | None:
        event = Event(self._name or "message", b"\n".join(self._data)) if self._data else None
        self._name, self._data, self._size = "", [], 0
        return event
