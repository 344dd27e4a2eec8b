"""Seeing to it that an instance is there for as long as who gets its address was promised."""

from __future__ import annotations

import secrets

import msgspec
import structlog

from protocol.instances import InstanceReport
from protocol.link import Extend, Wake
from protocol.problems import Problem
from region_controller.leases import lease_deadline
from region_controller.region import Region

log = structlog.get_logger(__name__)

EXTEND_MARGIN_S = 2.0
"""An instance this close to its end is extended before it is handed out, not behind it."""
EXTEND_STEP_S = 1
"""Extensions ask for so much more than needed, so that a busy instance is extended once a second, not per request."""


class Prolonging:
    def __init__(self, region: Region) -> None:
        self._region = region

    async def until(self, node: str, report: InstanceReport, alive_time: int | None) -> bool:
        """The instance lives at least `alive_time` from now. False if it may be gone before it hears of that."""
        now = self._region.clock()
        asked = report.alive_time if alive_time is None else alive_time
        deadline = lease_deadline(asked, now)
        if report.expires_at is None or (deadline is not None and deadline <= report.expires_at):
            return True
        longer = asked + EXTEND_STEP_S if asked else 0
        command = Extend(secrets.token_hex(8), report.instance, longer)
        try:
            link = self._region.links.link(node)
            if report.expires_at - now < EXTEND_MARGIN_S:
                await link.call(command, timeout_s=EXTEND_MARGIN_S)
            else:
                link.post(command)
                extended = msgspec.structs.replace(report, expires_at=lease_deadline(longer, now))
                self._region.members.changed(node, extended, now)
        except Problem as problem:
            log.info("extend-failed", instance=report.instance, agent=node, problem=problem.detail)
            return False
        return True

    def wake(self, node: str, instance: str) -> None:
        """Its engine thaws it while the answer is on its way, rather than when the client's first byte is there."""
        try:
            self._region.links.link(node).post(Wake(secrets.token_hex(8), instance))
        except Problem as problem:
            log.info("wake-failed", instance=instance, agent=node, problem=problem.detail)
