"""Services as WebAssembly modules, for machines without Docker.

`runtime` is the node's side; `hosting` keeps one process, `host`, that has no keys, rights or network and runs the
modules (`service`, `engine`) with the WAGI convention (`wagi`): one fresh run for each request.
"""
