"""What a service needs besides its work: an HTTP/1.1 server, errors in words, and the alive messages to its agent.

`make services` puts this file into the archives of the photo services too (services/README.md).
"""

import concurrent.futures
import http
import json
import os
import signal
import socketserver
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from wsgiref import simple_server

import bottle

CHUNK = 2**16
REQUESTS = 16
AGENT = os.environ.get("AGENT_URL", "http://agent:5001") + "/api/microservices"


class Application(bottle.Bottle):
    """A WSGI application whose errors are problem+json. Its handlers set `alive` when they work for somebody."""

    def __init__(self):
        super().__init__()
        self.alive = threading.Event()

    def default_error_handler(self, res):
        body = problem(res.status_code, {500: "The service failed; its log says why."}.get(res.status_code, res.body))
        res.content_type = bottle.response.content_type
        return body


def problem(status, detail, fix=""):
    """The body of an error (RFC 9457): `detail` says what is wrong, `fix` what to do. Sets status and content type."""
    bottle.response.status = status
    bottle.response.content_type = "application/problem+json"
    body = {"type": "about:blank", "title": http.HTTPStatus(status).phrase, "status": status, "detail": detail}
    return json.dumps({**body, "fix": fix} if fix else body) + "\n"


class Server(socketserver.ThreadingMixIn, simple_server.WSGIServer):
    """As many requests at once as its `pool` has threads; others wait."""

    request_queue_size = 128

    def process_request(self, request, client_address):
        self.pool.submit(self.process_request_thread, request, client_address)

    def shutdown_request(self, request):
        """Closing on unread bytes would tear the answer away: read on for a second (a lingering close)."""
        try:
            request.shutdown(1)
            request.settimeout(1)
            end = time.monotonic() + 1
            while time.monotonic() < end and request.recv(CHUNK):
                continue
        except OSError:
            return
        finally:
            self.close_request(request)


class Handler(simple_server.WSGIRequestHandler):
    timeout = 30
    protocol_version = "HTTP/1.1"  # answers "Expect: 100-continue"

    def log_message(self, *_):
        return

    def address_string(self):
        return self.client_address[0]


def tell_agent(name, alive):
    """One message at start and after requests, at most one a second, so that no request waits for the agent."""
    body = urllib.parse.urlencode({"name": name}).encode()
    while True:
        try:
            urllib.request.urlopen(urllib.request.Request(AGENT, body, method="PUT"), timeout=1).close()
        except (OSError, urllib.error.URLError) as error:
            print("alive message failed:", error, flush=True)
        time.sleep(1)
        alive.wait()
        alive.clear()


def serve(application):
    """Serve until SIGTERM. The first alive message goes out when requests are answered: whatever takes long is done."""
    with simple_server.make_server("", int(os.environ.get("PORT", "8080")), application, Server, Handler) as server:
        server.pool = concurrent.futures.ThreadPoolExecutor(REQUESTS)
        signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
        name = os.environ.get("name")  # noqa: SIM112
        if name:
            threading.Thread(target=tell_agent, args=[name, application.alive], daemon=True).start()
        server.serve_forever(poll_interval=0.05)  # a stop waits for the next look
        server.pool.shutdown()
