"""Roster: a gateway's links to the engines of one model, and which of them can take work."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Final

import msgspec

from qwenfleet.cluster.config.fleet import WireConfig
from qwenfleet.cluster.labels import EngineState, Loss
from qwenfleet.deployments.dispatch.link import EngineLink, LinkEvents
from qwenfleet.deployments.registry.records import EngineRecord
from qwenfleet.deployments.wire.frames import EngineDescription
from qwenfleet.deployments.wire.lease_keeper import NO_KEEPER, Leases
from qwenfleet.deployments.wire.liveness import Condition

logger = logging.getLogger(__name__)

RECONNECT_S: Final = 0.5
"""Pause before reconnecting to an engine that refused or dropped the connection; the registry still
lists it for 5 s."""
REFUSED_S: Final = 30.0
"""Pause before the next try at an engine that cannot work with this gateway, such as one of another
version: its process would have to be replaced, and then it has another id."""
REMEMBER_S: Final = 30.0
"""How long a lost engine is retried although the registry does not list it: a restarted registry is
complete again in seconds."""
REACHABLE: Final = frozenset({EngineState.READY, EngineState.QUARANTINED})


class Roster:
    """Connects to every engine of a model that the registry lists."""

    def __init__(
        self,
        model: str,
        *,
        gateway: str,
        wire: WireConfig,
        events: LinkEvents,
        clock: Callable[[], float],
        vllm_version: str = "",
        leases: Leases = NO_KEEPER,
    ) -> None:
        self._model = model
        self._gateway = gateway
        self._wire = wire
        self._events = events
        self._clock = clock
        self._vllm_version = vllm_version
        self._leases = leases
        self._refused: set[str] = set()
        """Engines whose refusal was logged."""
        self._links: dict[str, EngineLink] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._retry_at: dict[str, float] = {}
        self._lost: dict[str, tuple[EngineRecord, float]] = {}
        """Lost engines by id, and until when they are retried without being listed."""

    def update(self, records: Iterable[EngineRecord]) -> None:
        """Connect to new engines of this model, and to recently lost ones: a registry that is
        unavailable or restarting lists none."""
        now = self._clock()
        records = list(records)
        self._refused &= {record.id for record in records}
        self._lost = {key: entry for key, entry in self._lost.items() if entry[1] > now}
        lost = [record for record, _ in self._lost.values()]
        for record in [*records, *lost]:
            is_ours = record.model == self._model and record.state in REACHABLE
            if is_ours and record.id not in self._links and self._retry_at.get(record.id, 0) <= now:
                link = self._links[record.id] = EngineLink(
                    record,
                    gateway=self._gateway,
                    wire=self._wire,
                    events=self._events,
                    clock=self._clock,
                    vllm_version=self._vllm_version,
                    leases=self._leases,
                )
                task = self._tasks[record.id] = asyncio.create_task(link.run())
                task.add_done_callback(_log_end)

    def remove(self, link: EngineLink, reason: str = "") -> None:
        """Forget a lost link. Its engine is retried after RECONNECT_S, or REFUSED_S."""
        if self._links.get(link.engine) is link:
            del self._links[link.engine]
            self._tasks.pop(link.engine, None)
        now = self._clock()
        self._retry_at = {key: at for key, at in self._retry_at.items() if at > now}
        self._retry_at[link.engine] = now + (REFUSED_S if link.is_refused else RECONNECT_S)
        if link.is_refused and link.engine not in self._refused:
            self._refused.add(link.engine)
            extra = {"engine": link.engine, "reason": reason}
            logger.warning("engine cannot work with this gateway", extra=extra)
        if link.description is not None and not link.is_draining:
            self._lost[link.engine] = (link.record, now + REMEMBER_S)

    def close(self) -> None:
        for task in self._tasks.values():
            task.cancel()

    @property
    def description(self) -> EngineDescription | None:
        """Limits of this model's engines: a request within them can go to each that is connected.
        None until one is."""
        connected = self._connected()
        if not connected:
            return None
        least = min(described.max_model_len for described in connected)
        return msgspec.structs.replace(connected[0], max_model_len=least)

    @property
    def limits(self) -> list[int]:
        """Each different `max_model_len` of the connected engines, in order."""
        return sorted({described.max_model_len for described in self._connected()})

    def _connected(self) -> list[EngineDescription]:
        links = self._links.values()
        return [link.description for link in links if link.description is not None]

    @property
    def backlog_bytes(self) -> int:
        """Bytes that wait in the links."""
        return sum(link.backlog_bytes for link in self._links.values())

    def link(self, engine: str) -> EngineLink:
        return self._links[engine]

    @property
    def num_working(self) -> int:
        """Links that can take work now, without the frozen ones."""
        return sum(link.condition is not Condition.FROZEN for link in self.usable())

    def usable(self, length_tokens: int = 0) -> list[EngineLink]:
        """Links that can take work of this length: the steady ones, else the slow ones, else the
        frozen ones, because the last engine is never quarantined."""
        links = [
            link
            for link in self._links.values()
            if link.is_open and not link.is_draining and link.fits(length_tokens)
        ]
        for condition in Condition:
            chosen = [link for link in links if link.condition is condition]
            if chosen:
                return chosen
        return []


def log_loss(link: EngineLink, loss: Loss, reason: str, requests: int) -> None:
    """Log a lost engine, and how many requests of this gateway it had."""
    extra = {"engine": link.engine, "loss": loss.value, "reason": reason, "requests": requests}
    logger.warning("engine lost", extra=extra)


def _log_end(task: asyncio.Task[None]) -> None:
    """Log the exception of a link. A link handles every expected one, so this is a bug."""
    if not task.cancelled() and task.exception() is not None:
        logger.error("engine link failed", exc_info=task.exception())
