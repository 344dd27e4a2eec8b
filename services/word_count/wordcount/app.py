"""Counts the words of a text file. POST it to /wordcount, as the body or as the multipart field "file"."""

import codecs
import re

import bottle
from serving import CHUNK, Application, problem, serve

LIMIT = 64 * 2**20

app = Application()


@app.get("/")
def about():
    bottle.response.content_type = "text/plain"
    return "Word count: POST a text file to /wordcount, get an integer.\n"


@app.post("/wordcount")
def word_count():
    app.alive.set()
    length = bottle.request.content_length
    if length < 0:
        return problem(411, "The request has no Content-Length.", "Send the size of the text in bytes.")
    if length > LIMIT:
        return problem(413, f"The text has {length} bytes and the limit is {LIMIT}.", "Send it in parts.")
    chunks = read(bottle.request.environ["wsgi.input"], length)
    boundary = re.search(r'^multipart/.*boundary="?([^";]+)', bottle.request.content_type)
    try:
        words = count(file_field(chunks, boundary[1].encode()) if boundary else chunks)
    except (OSError, ValueError) as error:
        return problem(400, str(error), "Send the whole text.")
    bottle.response.content_type = "text/plain"
    return str(words)


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


if __name__ == "__main__":
    serve(app)
