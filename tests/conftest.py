"""What all tests share."""

from __future__ import annotations

import asyncio

# A plugin asks for the current event loop around synchronous tests. Without this line the policy would make one that
# nobody closes, and its warning would fail some innocent test.
asyncio.set_event_loop(None)
