"""Content between nodes: fetched from several providers at once, and handed on while it still arrives.

`exchange` is the face; `transfer` is one fetch, whose every decision `picker` (which chunk from whom) and `crowd` (who
else fetches it now) take as pure rules; `content_server` and `content_client` speak the protocol of docs/protocol.md.
"""
