"""The page that a controller shows at `/`: where you are, what can be asked for, and how to reach it without mDNS."""

from __future__ import annotations

import html

from aiohttp import web

from node.config import NodeConfig

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Cornerstore · {region}</title>
<style>
:root {{ color-scheme: light dark; font: 1rem/1.5 system-ui, sans-serif }}
body {{ max-width: 42rem; margin: 2rem auto; padding: 0 1rem }}
code {{ overflow-wrap: anywhere }}
li {{ margin: .4rem 0 }}
</style></head><body>
<h1>Cornerstore</h1>
<p>You reached the controller of region <strong>{region}</strong> in the mesh <strong>{mesh}</strong>.</p>
<p>Where multicast is blocked, use this address: <code>{url}</code></p>
<h2>Services</h2>
<ul id="services" aria-live="polite"><li>Asking the mesh…</li></ul>
<p><a href="/openapi.json">API description</a> · <a href="/v1/agents">agents</a> · <a href="/v1/regions">regions</a>
 · <a href="/metrics">metrics</a></p>
<script>
fetch("/v1/services?category=/").then(async answer => {{
  const body = await answer.json();
  const list = document.getElementById("services");
  list.replaceChildren();
  const say = text => {{ const li = document.createElement("li"); li.textContent = text; list.append(li); }};
  if (!answer.ok) return say(body.detail);
  const services = Array.isArray(body) ? body : body.services;
  if (!services.length) say("Nothing is published yet.");
  for (const s of services)
    say(`${{s.category}}  ${{s.id}} (${{s.name}}): ${{s.inputs.join(", ")}} → ${{s.outputs.join(", ")}}`);
}}).catch(() => {{ document.getElementById("services").textContent = "The controller does not answer."; }});
</script></body></html>
"""

_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; script-src 'unsafe-inline'; style-src 'unsafe-inline'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


def page_routes(config: NodeConfig, url: str) -> list[web.RouteDef]:
    """`url` is the controller's own REST address."""
    text = _PAGE.format(region=html.escape(config.region), mesh=html.escape(config.mesh), url=html.escape(url))

    async def page(_request: web.Request) -> web.Response:
        return web.Response(text=text, content_type="text/html", headers=_HEADERS)

    return [web.get("/", page)]
