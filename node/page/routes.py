"""Serving the page: from memory, revalidated by ETag, under a policy that lets nothing in from anywhere else.

The page asks for nothing but its own controller, so it works with the WAN cut.
"""

from __future__ import annotations

import hashlib
import html
import io
from importlib import resources

import segno
from aiohttp import web
from msgspec import Struct

from node.config import NodeConfig

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob:",  # blob: the photo that was just taken
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
_HEADERS = {
    "Content-Security-Policy": POLICY,
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # kept, and asked about each time: an update shows at once
}
_MEDIA_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}


class File(Struct, frozen=True):
    body: bytes
    media_type: str

    @property
    def etag(self) -> str:
        return hashlib.sha256(self.body).hexdigest()[:32]


def page_routes(config: NodeConfig, url: str) -> list[web.RouteDef]:
    """`/` and what it needs below `/page/`. `url` is the controller's own REST address."""
    files = page_files(region=config.region, mesh=config.mesh, url=url)

    async def page(request: web.Request) -> web.Response:
        return _answer(request, files["index.html"])

    async def part(request: web.Request) -> web.Response:
        file = files.get(request.match_info["name"])
        if file is None:
            raise web.HTTPNotFound
        return _answer(request, file)

    return [web.get("/", page), web.get("/page/{name}", part)]


def page_files(*, region: str, mesh: str, url: str) -> dict[str, File]:
    """Every file of the page by its name. `index.html` tells where it is; `address.svg` is its QR code."""
    files: dict[str, File] = {}
    for entry in resources.files(__package__).iterdir():
        suffix = entry.name[entry.name.rfind(".") :]
        if suffix in _MEDIA_TYPES:
            files[entry.name] = File(entry.read_bytes(), _MEDIA_TYPES[suffix])
    text = files["index.html"].body.decode()
    for mark, value in (("{{region}}", region), ("{{mesh}}", mesh), ("{{url}}", url)):
        text = text.replace(mark, html.escape(value))
    files["index.html"] = File(text.encode(), "text/html")
    files["address.svg"] = File(qr_code(url), "image/svg+xml")
    return files


def qr_code(text: str) -> bytes:
    """An SVG, dark on white with a quiet zone, so that cameras read it on a dark page too."""
    svg = io.BytesIO()
    segno.make_qr(text, error="m").save(svg, kind="svg", xmldecl=False, dark="#000", light="#fff", omitsize=True)
    return svg.getvalue()


def _answer(request: web.Request, file: File) -> web.Response:
    response = web.Response(body=file.body, content_type=file.media_type, charset="utf-8", headers=_HEADERS)
    response.etag = file.etag
    if request.if_none_match and any(tag.value in ("*", file.etag) for tag in request.if_none_match):
        response.body = None
        response.set_status(304)
    return response
