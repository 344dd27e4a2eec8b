"""The edge agent: runs services from their archives on this machine, and answers to its region's controller.

`lifecycle` holds every rule of an instance's states; `runner` and `operations` perform them on a `runtime`, of which
there are three: `docker`, `wasm`, and `memory_runtime` for tests of other parts.
"""
