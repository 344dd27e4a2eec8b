"""Counts the words of a text file. POST it to /wordcount, as the body or as the multipart field "file"."""

import codecs
import concurrent.futures
import os
import re
import signal
import socketserver
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from wsgiref import simple_server

import bottle

LIMIT = 64 * 2**20
CHUNK = 2**16
AGENT = os.environ.get("AGENT_URL", "http://agent:5001") + "/api/microservices"

app = bottle.Bottle()
alive = threading.Event()


@app.get("/")
def about():
    bottle.response.content_type = "text/plain"
    return "Word count: POST a text file to /wordcount, get an integer.\n"


@app.post("/wordcount")
def word_count():
    alive.set()
    bottle.response.content_type = "text/plain"
    length = bottle.request.content_length
    if length < 0:
        return refuse(411, "Send a Content-Length: the size of the text in bytes.")
    if length > LIMIT:
        return refuse(413, f"The text has {length} bytes and the limit is {LIMIT}: send it in parts.")
    chunks = read(bottle.request.environ["wsgi.input"], length)
    boundary = re.search(r'^multipart/.*boundary="?([^";]+)', bottle.request.content_type)
    try:
        return str(count(file_field(chunks, boundary[1].encode()) if boundary else chunks))
    except (OSError, ValueError) as error:
        return refuse(400, str(error))


def refuse(status, sentence):
    bottle.response.status = status
    return sentence + "\n"


def read(stream, length):
    while length:
        chunk = stream.read(min(CHUNK, length))
        if not chunk:
            raise ValueError("The text ended before its Content-Length.")
        length -= len(chunk)
        yield chunk


def count(chunks):
    """Words are what white space separates. Bytes that are not UTF-8 count as letters."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    words, inside = 0, False
    for chunk in chunks:
        text = decoder.decode(chunk)
        if text:
            words += len(text.split()) - (inside and not text[0].isspace())
            inside = not text[-1].isspace()
    return words + (bool(decoder.decode(b"", final=True)) and not inside)


def file_field(chunks, boundary):
    """The bytes of the field "file" in a multipart body (RFC 7578), never more than two chunks at a time."""
    mark, wanted, head, rest = b"\r\n--" + boundary, False, False, b"\r\n"
    for chunk in chunks:
        rest += chunk
        while True:
            before, found, after = rest.partition(b"\r\n\r\n" if head else mark)
            if not found:
                break
            if head:
                wanted = b' name="file"' in before
            elif wanted:
                yield before
                return
            head, rest = not head, after
        if head and len(rest) > CHUNK * 2:
            break
        if not head:
            kept = len(rest) - len(mark)
            if wanted and kept > 0:
                yield rest[:kept]
            rest = rest[max(kept, 0) :]
    raise ValueError('The form has no complete field "file".')


class Server(socketserver.ThreadingMixIn, simple_server.WSGIServer):
    """16 requests at once; others wait."""

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


def tell_agent(name):
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


def main():
    with simple_server.make_server("", int(os.environ.get("PORT", "8080")), app, Server, Handler) as server:
        server.pool = concurrent.futures.ThreadPoolExecutor(16)
        signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
        name = os.environ.get("name")  # noqa: SIM112
        if name:
            threading.Thread(target=tell_agent, args=[name], daemon=True).start()
        server.serve_forever(poll_interval=0.05)  # a stop waits for the next look
        server.pool.shutdown()


if __name__ == "__main__":
    main()
