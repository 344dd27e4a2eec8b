from __future__ import annotations

from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from node.config import NodeConfig
from node.page import page_routes
from node.page.routes import page_files

URL = "http://10.1.0.10:7400"


def a_client() -> TestClient[web.Request, web.Application]:
    app = web.Application()
    app.add_routes(page_routes(NodeConfig(mesh="corner", region="eu/de"), URL))
    return TestClient(TestServer(app, host="127.0.0.1"))


async def test_every_part_comes_with_an_etag_and_a_policy_and_only_once() -> None:
    async with a_client() as client:
        for path in ("/", "/page/app.js", "/page/style.css", "/page/address.svg"):
            async with client.get(path) as first:
                assert first.status == 200
                policy = first.headers["Content-Security-Policy"].split("; ")
                assert policy[0] == "default-src 'none'"
                assert not any("unsafe" in rule or "http" in rule or "data:" in rule for rule in policy)
                assert first.headers["X-Content-Type-Options"] == "nosniff"
                etag = first.headers["ETag"]
            async with client.get(path, headers={"If-None-Match": f'"other", {etag}'}) as again:
                assert (again.status, await again.read()) == (304, b"")


async def test_only_the_page_is_served() -> None:
    async with a_client() as client:
        for path in ("/page/routes.py", "/page/__init__.py", "/page/..%2Fconfig.py", "/page/", "/page/index.htm"):
            async with client.get(path) as response:
                assert response.status == 404, path


def test_it_says_where_one_is_and_nothing_that_is_not_text() -> None:
    files = page_files(region="eu/<b>", mesh="corner", url=URL)
    page = files["index.html"].body.decode()
    assert "eu/&lt;b&gt;" in page
    assert f'alt="QR code of {URL}"' in page
    assert "{{" not in page


def test_what_the_page_names_is_there_and_nothing_comes_from_elsewhere() -> None:
    files = page_files(region="eu/de", mesh="corner", url=URL)
    text = "".join(file.body.decode() for file in files.values())
    for name in ("style.css", "app.js", "icon.svg", "address.svg"):
        assert f"/page/{name}" in files["index.html"].body.decode()
        assert name in files
    elsewhere = text.replace(URL, "").replace("http://www.w3.org/2000/svg", "")
    assert "://" not in elsewhere


def test_the_address_changes_the_code() -> None:
    one, other = (page_files(region="r", mesh="m", url=url)["address.svg"].body for url in (URL, URL + "1"))
    assert one.startswith(b"<svg")
    assert one != other
