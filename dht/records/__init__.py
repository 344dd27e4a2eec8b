"""Signed records: what a node keeps for the mesh, how it spreads them, and how it reads a key's set.

`storage` is the durable table, `replica` the rules of what may enter it, `republish` its duty to others, `directory`
the face that publishes and finds. Large sets go over HTTP (`set_client`, `set_serving`, `set_wire`).
"""
