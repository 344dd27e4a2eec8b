"""Archives on disk, as content-defined chunks that are verified before they are kept and whenever they are read.

`store` promises quota, pins and LRU; `packs` holds the bytes, `index` knows where they lie, `intake` lets a new archive
come in piece by piece and survive a crash halfway.
"""
