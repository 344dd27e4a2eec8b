"""The experiments of Gedeon et al., "A Microservice Store for Efficient Edge Offloading" (2019), on emulated links.

`make bench-paper` measures (docs/paper.md tells how) and keeps `results/paper.json`, with the plots beside it.
"""
