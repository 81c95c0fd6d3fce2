"""Drain: the end of a gateway, from the order to its last request.

A gateway that drains goes on with what it has. It also takes what proxies still send, until they
have had time to learn that it leaves; after that it refuses new requests.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Final

LAST_CALL_S: Final = 10.0
"""Time for HAProxy to stop sending here. It probes each 5 s, and 0.25 s after a failure takes a
server out (ray 2.60 serve/_private/constants.py, RAY_SERVE_HAPROXY_HEALTH_CHECK_*)."""


class Drain:
    """Whether a gateway drains, why, and until when. `clock` returns monotonic seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.reason = ""
        """Why it drains; empty while it does not."""
        self._clock = clock
        self._began_at = math.inf
        self._until = math.inf

    def order(self, reason: str, deadline_s: float) -> bool:
        """Begin to drain, or end earlier than ordered before; False if this changes nothing."""
        until = self._clock() + deadline_s
        if until >= self._until:
            return False
        self.reason, self._until = reason, until
        self._began_at = min(self._began_at, self._clock())
        return True

    @property
    def is_on(self) -> bool:
        return self._began_at < math.inf

    @property
    def refuses(self) -> bool:
        """Whether new requests are refused."""
        return self._clock() >= min(self._began_at + LAST_CALL_S, self._until)

    @property
    def left_s(self) -> float:
        """Seconds until the requests that are left get an error; infinite while it serves."""
        return max(0.0, self._until - self._clock())
