"""What a service's error looks like in a terminal."""

from __future__ import annotations

from client.invocation import MAX_LINE, plain_reply

PAGE = """<!doctype html>
<html><head><title>500</title><style>body { color: red }</style></head>
<body><h1>Internal&nbsp;Server Error</h1>
<p>The server &lt;wc&gt; met a fault.</p><script>alert(1)</script></body></html>"""


def test_an_html_page_becomes_one_line_of_its_words() -> None:
    assert plain_reply(PAGE, "text/html") == "Internal Server Error The server <wc> met a fault."
    assert plain_reply(PAGE, "application/octet-stream") == plain_reply(PAGE, "text/html"), "as it looks, so it is"
    assert len(plain_reply("<p>" + "word " * 1000, "text/html")) <= MAX_LINE


def test_of_problem_json_the_sentences_are_shown() -> None:
    body = '{"title": "Bad Request", "status": 400, "detail": "The request is empty.", "fix": "Send a photo."}'
    assert plain_reply(body, "application/problem+json") == "The request is empty. Send a photo."
    assert plain_reply('{"title": "Bad Request", "more": 1}', "application/problem+json") == "Bad Request"
    for odd in ('{"detail": 1}', "{}", "[]", '{"detail": "cut of'):
        assert plain_reply(odd, "application/problem+json") == odd


def test_anything_else_stays_as_it_is() -> None:
    assert plain_reply('{"error": "<no words>"}\n', "application/json") == '{"error": "<no words>"}\n'
