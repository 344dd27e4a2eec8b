"""Measurements against a peer or a physical floor in the same run. `make bench-NAME` runs `benchmarks.NAME`."""
