"""The demo services in this process: their own code, their own server, on a free port."""

from __future__ import annotations

import concurrent.futures
import http.client
import importlib.util
import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple
from wsgiref import simple_server

SERVICES = Path(__file__).parents[1] / "services"


def load(context: Path) -> ModuleType:
    """`app.py` of a build context. What it imports from its own folder stays on the path, as in its container."""
    sys.path.append(str(context))
    spec = importlib.util.spec_from_file_location(f"{context.name}_app", context / "app.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextmanager
def serving(application: Any) -> Iterator[int]:
    """The port on which the service answers, until the block ends."""
    kinds = sys.modules["serving"]
    with simple_server.make_server("127.0.0.1", 0, application, kinds.Server, kinds.Handler) as server:
        server.pool = concurrent.futures.ThreadPoolExecutor(4)
        thread = threading.Thread(target=server.serve_forever, args=[0.01])
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()
        server.pool.shutdown()


class Answer(NamedTuple):
    status: int
    kind: str
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def call(
    port: int, method: str, path: str, body: bytes | None = None, host: str = "127.0.0.1", **headers: str
) -> Answer:
    connection = http.client.HTTPConnection(host, port, timeout=20)
    connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
    answer = connection.getresponse()
    result = Answer(answer.status, answer.headers["Content-Type"], answer.read())
    connection.close()
    return result


def form(*fields: tuple[str, bytes], boundary: bytes = b"xyz") -> bytes:
    """A multipart body of (the rest of Content-Disposition, value)."""
    parts = (
        b"--" + boundary + b"\r\nContent-Disposition: form-data; " + head.encode() + b"\r\n\r\n" + value + b"\r\n"
        for head, value in fields
    )
    return b"".join(parts) + b"--" + boundary + b"--\r\n"
