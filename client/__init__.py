"""A typed client for phones, developers and the command line: discover, start, invoke, publish."""

from client.controller import ControllerClient
from client.discovery import Browser, Change, discover
from client.dnssd import FoundController
from client.listing import Listing
from client.phone import Phone

__all__ = ["Browser", "Change", "ControllerClient", "FoundController", "Listing", "Phone", "discover"]
