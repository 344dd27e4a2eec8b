"""`GET /metrics`: what the parts count, in the Prometheus text format. One registry per node, filled when asked."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from itertools import accumulate

from aiohttp import web
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.utils import floatToGoString

from dht.records.directory import NetworkDirectory
from dht.swarm.exchange import Exchange
from node.connections import Connections
from node.door import Guest
from region_controller import Controller
from region_controller.stats import BUCKETS_S


class _Collector:
    """Reads the parts' own counters; nothing is counted twice."""

    def __init__(
        self,
        directory: NetworkDirectory,
        content: Exchange,
        controller: Controller,
        certificate_ends: Callable[[], float],
        listeners: Mapping[str, Connections[Guest]],
    ) -> None:
        self._directory = directory
        self._content = content
        self._controller = controller
        self._certificate_ends = certificate_ends
        self._listeners = listeners

    def collect(self) -> Iterable[Metric]:
        yield from self._records()
        yield from self._blobs()
        yield from self._starts()
        yield GaugeMetricFamily(
            "cornerstore_certificate_end_seconds",
            "When the node's certificate ends, in Unix seconds.",
            value=self._certificate_ends(),
        )
        yield from self._connections()
        yield GaugeMetricFamily("cornerstore_tasks", "Tasks of the node's event loop.", value=len(asyncio.all_tasks()))

    def _records(self) -> Iterable[Metric]:
        numbers = GaugeMetricFamily("cornerstore_dht", "Numbers of the DHT by name.", labels=["name"])
        for name, value in self._directory.stats().items():
            numbers.add_metric([name], value)
        yield numbers

    def _blobs(self) -> Iterable[Metric]:
        stats = self._content.stats()
        yield GaugeMetricFamily("cornerstore_content_blobs", "Whole blobs on this node.", value=stats.blobs)
        yield GaugeMetricFamily("cornerstore_content_bytes", "Bytes of chunks on this node.", value=stats.stored_bytes)
        yield GaugeMetricFamily("cornerstore_content_quota_bytes", "Bytes allowed.", value=stats.quota_bytes)
        yield GaugeMetricFamily("cornerstore_content_uploads", "Answers with chunks under way.", value=stats.uploads)
        yield GaugeMetricFamily("cornerstore_content_transfers", "Fetches under way.", value=stats.transfers)
        yield CounterMetricFamily("cornerstore_content_damaged", "Chunks found corrupt on disk.", value=stats.damaged)
        for name, text, table in (
            ("cornerstore_content_received_bytes", "Bytes received, by peer and cause.", stats.received),
            ("cornerstore_content_sent_bytes", "Bytes sent, by peer and cause.", stats.sent),
        ):
            counter = CounterMetricFamily(name, text, labels=["peer", "cause"])
            for (peer, cause), size in table.items():
                counter.add_metric([peer, cause], size)
            yield counter

    def _connections(self) -> Iterable[Metric]:
        open_ = GaugeMetricFamily("cornerstore_connections", "Connections for HTTP that are open.", labels=["listener"])
        refused = CounterMetricFamily(
            "cornerstore_connections_refused", "Connections that were too many.", labels=["listener"]
        )
        made_room = CounterMetricFamily(
            "cornerstore_connections_made_room", "Idle connections closed because others came.", labels=["listener"]
        )
        for name, connections in self._listeners.items():
            open_.add_metric([name], len(connections))
            refused.add_metric([name], connections.refused)
            made_room.add_metric([name], connections.made_room)
        yield from (open_, refused, made_room)

    def _starts(self) -> Iterable[Metric]:
        stats = self._controller.stats()
        starts = CounterMetricFamily("cornerstore_starts", "Requests for a service, by outcome.", labels=["kind"])
        for kind, count in stats.starts.items():
            starts.add_metric([kind], count)
        yield starts
        phases = HistogramMetricFamily("cornerstore_start_phase_seconds", "Time of starts, by phase.", labels=["phase"])
        for phase, taken in stats.phases.items():
            ends = [*map(floatToGoString, BUCKETS_S), "+Inf"]
            buckets = list(zip(ends, map(float, accumulate(taken.counts)), strict=True))
            phases.add_metric([phase], buckets=buckets, sum_value=taken.total_s)
        yield phases
        instances = GaugeMetricFamily("cornerstore_instances", "Instances of the region, by state.", labels=["state"])
        for state, count in stats.instances.items():
            instances.add_metric([state], count)
        yield instances
        yield GaugeMetricFamily("cornerstore_agents", "Agents linked to this controller.", value=stats.agents)
        yield GaugeMetricFamily("cornerstore_leases", "Leases that hold an instance.", value=stats.leases)
        yield CounterMetricFamily("cornerstore_starts_refused", "Requests that were too many.", value=stats.refused)
        yield GaugeMetricFamily("cornerstore_starts_queued", "Starts that wait for a turn or room.", value=stats.queued)
        yield CounterMetricFamily(
            "cornerstore_starts_overloaded", "Starts whose turn could not come in time.", value=stats.overloaded
        )
        memory = GaugeMetricFamily("cornerstore_memory_megabytes", "What the agents offer.", labels=["kind"])
        memory.add_metric(["total"], stats.memory_total)
        memory.add_metric(["free"], stats.memory_free)
        yield memory


def metrics_routes(
    *,
    directory: NetworkDirectory,
    content: Exchange,
    controller: Controller,
    certificate_ends: Callable[[], float],
    listeners: Mapping[str, Connections[Guest]],
) -> list[web.RouteDef]:
    """`listeners`: their connections, by name."""
    registry = CollectorRegistry()
    ProcessCollector(namespace="cornerstore", registry=registry)
    registry.register(_Collector(directory, content, controller, certificate_ends, listeners))

    async def metrics(_request: web.Request) -> web.Response:
        return web.Response(body=generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    return [web.get("/metrics", metrics)]
