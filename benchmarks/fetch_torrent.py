"""libtorrent in a process of its own: `seed FILE` or `get FOLDER PORT...`, unencrypted, TCP, no DHT, no trackers.

Seeding prints its port, then lives until stdin ends. Getting prints the seconds from adding the torrent to the last
verified piece written. Both print their processor time when they end.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import libtorrent as lt


def session() -> Any:
    settings = lt.high_performance_seed()
    settings.update(
        listen_interfaces="127.0.0.1:0",
        enable_dht=False,
        enable_lsd=False,
        enable_upnp=False,
        enable_natpmp=False,
        enable_incoming_utp=False,
        enable_outgoing_utp=False,
        out_enc_policy=lt.enc_policy.pe_disabled,
        in_enc_policy=lt.enc_policy.pe_disabled,
        allow_multiple_connections_per_ip=True,
        alert_mask=lt.alert.category_t.status_notification,
    )
    return lt.session(settings)


def described(path: Path) -> Any:
    files = lt.file_storage()
    lt.add_files(files, str(path))
    torrent = lt.create_torrent(files, flags=lt.create_torrent.v1_only)
    lt.set_piece_hashes(torrent, str(path.parent))
    return lt.torrent_info(torrent.generate())


def cpu_s() -> float:
    spent = os.times()
    return spent.user + spent.system


def seed(path: Path) -> None:
    engine = session()
    parameters = lt.add_torrent_params()
    parameters.ti, parameters.save_path, parameters.flags = (
        described(path),
        str(path.parent),
        lt.torrent_flags.seed_mode,
    )
    engine.add_torrent(parameters)
    print(json.dumps({"port": engine.listen_port()}), flush=True)
    for _ in sys.stdin:
        print(json.dumps({"cpu_s": cpu_s()}), flush=True)


def get(path: Path, folder: Path, ports: list[int]) -> None:
    engine = session()
    parameters = lt.add_torrent_params()
    parameters.ti, parameters.save_path = described(path), str(folder)
    before, began = cpu_s(), time.perf_counter()
    torrent = engine.add_torrent(parameters)
    for port in ports:
        torrent.connect_peer(("127.0.0.1", port))
    while not torrent.status().is_seeding:
        engine.wait_for_alert(20)
        engine.pop_alerts()
    print(json.dumps({"seconds": time.perf_counter() - began, "cpu_s": cpu_s() - before}), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "seed":
        seed(Path(sys.argv[2]))
    else:
        get(Path(sys.argv[2]), Path(sys.argv[3]), [int(port) for port in sys.argv[4:]])
