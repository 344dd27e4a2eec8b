"""The stage of the paper's experiments: a link is no better than it claims, and a phone tells what it did on it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks.paper.links import LINES, measure
from benchmarks.paper.phone import Order, running_phone
from tests.multihost.testbed import REPOSITORY, running_testbed
from tests.waiting import until

pytestmark = pytest.mark.netns
WORDS = 500


async def test_a_phone_on_4g_counts_its_words_at_the_edge(tmp_path: Path) -> None:
    body, reply = tmp_path / "text", tmp_path / "reply"
    body.write_text("word " * WORDS)
    async with running_testbed({"4g": ["phone"], "edge": ["node"]}, uplinks={"4g": LINES["4g"]}) as bed:
        phone_host, edge = bed.host("4g", "phone"), bed.host("edge", "node")
        log = tmp_path / "probe"
        await bed.popen(edge, [sys.executable, "-m", "benchmarks.paper.links"], log=log)
        service = [sys.executable, str(REPOSITORY / "services/word_count/wordcount/app.py")]
        await bed.popen(edge, service, log=tmp_path / "service", env={"PORT": "8080"})
        await until(lambda: "ready" in log.read_text())
        link = await measure(bed, "4g", phone_host, edge)
        assert link.measured.rtt_ms >= link.target.rtt_ms == 40
        assert 0 < link.measured.up_mbit <= link.target.up_mbit * 1.05
        assert link.measured.up_mbit < link.measured.down_mbit <= link.target.down_mbit * 1.05

        async with running_phone(phone_host) as phone:
            order = Order(do="call", at=f"{edge.address}:8080", path="/wordcount", body=str(body), reply=str(reply))
            report = await phone.do(order)
            assert int(reply.read_bytes()) == WORDS
            (call,) = report.phases
            assert call.name == "call"
            assert call.seconds >= 0.08, "a connection and a request are two round trips"
            assert call.up_bytes > body.stat().st_size
            with pytest.raises(RuntimeError, match="nothing listens there"):
                await phone.do(Order(do="start", controller=f"http://{edge.address}:9", service="x", body=str(body)))
