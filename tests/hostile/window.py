"""Window: what the clients of another model saw during a span of time."""

from __future__ import annotations

from collections import Counter

import msgspec


class Window(msgspec.Struct):
    """Probes and streams of a bystander. Times are seconds."""

    probes: int = 0
    worst_probe_s: float = 0.0
    """Longest wait for a one-token completion, also of one that is still open."""
    worst_neighbor_s: float = 0.0
    """The same for a request to the attacked model by another client."""
    worst_health_s: float = 0.0
    """Longest wait for /health/live."""
    refused: dict[str, int] = {}
    """Probes that did not get 200, by status or fault."""
    lost: list[str] = []
    """Streams that ended, each with its reason."""
    changed: int = 0
    """Streams whose text was not the script's."""
    gap_s: float = 0.0
    """Longest wait for the next token of a stream, also of one that still waits."""

    def plus(self, later: Window) -> Window:
        return Window(
            probes=self.probes + later.probes,
            worst_probe_s=max(self.worst_probe_s, later.worst_probe_s),
            worst_neighbor_s=max(self.worst_neighbor_s, later.worst_neighbor_s),
            worst_health_s=max(self.worst_health_s, later.worst_health_s),
            refused=dict(Counter(self.refused) + Counter(later.refused)),
            lost=self.lost + later.lost,
            changed=self.changed + later.changed,
            gap_s=max(self.gap_s, later.gap_s),
        )

    def is_calm(self, within_s: float) -> bool:
        """Whether every probe and stream was served within this time."""
        waits = (self.worst_probe_s, self.worst_neighbor_s, self.worst_health_s, self.gap_s)
        return self.probes > 0 and not self.refused and not self.lost and max(waits) < within_s
