"""The store: signed records in a Kademlia overlay, and content in verified chunks.

`overlay` carries sealed datagrams and lookups; `records` keeps, spreads and reads signed records over it; `blobs` keeps
archives as verified chunks on disk; `swarm` moves them between nodes. `contracts` is all that the floors above ask for.
"""
