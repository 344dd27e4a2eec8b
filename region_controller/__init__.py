"""The controller of a region: takes requests of phones, places services on agents, hands off to other regions."""

from region_controller.api import client_routes, peer_routes
from region_controller.controller import Controller, running_controller
from region_controller.leases import AliveBounds
from region_controller.operations import Caller
from region_controller.region import ControllerConfig
from region_controller.stats import ControllerStats

__all__ = [
    "AliveBounds",
    "Caller",
    "Controller",
    "ControllerConfig",
    "ControllerStats",
    "client_routes",
    "peer_routes",
    "running_controller",
]
