"""Loop lag: how late an event loop runs its timers.

While a loop stands, every stream of its process waits, and health checks too. The watch itself is
late by as much, so the lag of a stall is known when the stall is over.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

logger = logging.getLogger(__name__)

SAMPLE_S: Final = 0.1
"""Time between two samples: 10 wake-ups per second cost 0.1 % of a core."""
LOGGED_S: Final = 1.0
"""A stall that long is logged: readers of streams have noticed it."""


async def watch(note: Callable[[float], None]) -> None:
    """Call `note` with the lag of each sample, in seconds, until this is canceled."""
    loop = asyncio.get_running_loop()
    due_at = loop.time() + SAMPLE_S
    while True:
        await asyncio.sleep(due_at - loop.time())
        now = loop.time()
        lag_s = max(0.0, now - due_at)
        note(lag_s)
        if lag_s >= LOGGED_S:
            logger.warning("event loop stalled", extra={"seconds": round(lag_s, 1)})
        due_at = now + SAMPLE_S
