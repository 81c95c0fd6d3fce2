"""Dispatcher: the requests of one model at one gateway, each owned by one engine at a time.

It keeps what is needed to resume a request anywhere (prompt, parameters and every token so far),
and gives the request to another engine when its own is lost, frozen or draining. Output counts only
from the attempt that owns the request now, so that a zombie engine cannot add a token.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import random
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Final

from qwenfleet.cluster.config.fleet import WireConfig
from qwenfleet.cluster.errors import FleetError
from qwenfleet.cluster.labels import Decision, FinishReason, Loss
from qwenfleet.deployments.dispatch import audit
from qwenfleet.deployments.dispatch.capacity import Capacity
from qwenfleet.deployments.dispatch.flight import Cut, Flight
from qwenfleet.deployments.dispatch.link import EngineLink
from qwenfleet.deployments.dispatch.owners import Owners
from qwenfleet.deployments.dispatch.recipient import Recipient
from qwenfleet.deployments.dispatch.roster import Roster, log_loss
from qwenfleet.deployments.dispatch.routing import Target
from qwenfleet.deployments.dispatch.suspicion import Verdict
from qwenfleet.deployments.dispatch.waiting_room import WaitingRoom
from qwenfleet.deployments.ingress.errors import (
    EngineRefused,
    GatewayFailed,
    LongerThanContext,
    NoEngine,
    RequestError,
    RequestKillsEngines,
)
from qwenfleet.deployments.registry.records import EngineRecord
from qwenfleet.deployments.telemetry.gateway_metrics import GatewayMetrics
from qwenfleet.deployments.wire.frames import EngineDescription, Output, Outputs, Rejected, Trying
from qwenfleet.deployments.wire.lease_keeper import NO_KEEPER, Leases
from qwenfleet.deployments.wire.liveness import Condition

logger = logging.getLogger(__name__)

HARMLESS: Final = frozenset({Loss.DRAINED, Loss.REFUSED})
"""Losses that a request cannot have caused."""
MAX_FAULTS: Final = 2
"""Engines that may fail to take a request in a row: a third one would fail like the second."""


class Dispatcher:
    """Implements `link.LinkEvents`. Never raises toward a link."""

    def __init__(
        self,
        model: str,
        *,
        gateway: str,
        wire: WireConfig,
        retry_after_s: int,
        metrics: GatewayMetrics,
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
        vllm_version: str = "",
        leases: Leases = NO_KEEPER,
    ) -> None:
        """Engines of another vLLM version than `vllm_version` are not used; empty: all are."""
        self._model = model
        self._retry_after_s = retry_after_s
        self._metrics = metrics
        self._clock = clock
        self._recipient: Recipient | None = None
        self._roster = Roster(
            model,
            gateway=gateway,
            wire=wire,
            events=self,
            clock=clock,
            vllm_version=vllm_version,
            leases=leases,
        )
        self._limit = 0  # of tokens, as last sent to the recipient
        self._flights: dict[str, Flight] = {}
        self._owners = Owners()
        self._capacity = Capacity(self._roster, clock)
        self._waiting = WaitingRoom(
            self._capacity, self._owners, rng=rng or random.Random(), send=self._send_safely
        )
        self._numbers = itertools.count()

    def attach(self, recipient: Recipient) -> None:
        """Set the receiver of outputs and errors; call it before the first request."""
        self._recipient = recipient

    # The fleet.

    def update(self, records: Iterable[EngineRecord]) -> None:
        """Connect to engines that the registry lists."""
        self._roster.update(records)

    def close(self) -> None:
        """Drop all requests and links: the gateway shuts down."""
        for flight in self._flights.values():
            flight.span.end("aborted")
            self._owners.discard(flight)
        self._flights.clear()
        self._waiting.clear()
        self._roster.close()

    @property
    def description(self) -> EngineDescription | None:
        """Limits of this model's engines; None until one is connected."""
        return self._roster.description

    @property
    def num_engines(self) -> int:
        """Engines that make progress and take new requests now."""
        return self._roster.num_working

    @property
    def num_moving(self) -> int:
        """Requests that wait for an engine, or for their turn to leave one."""
        return len(self._waiting)

    @property
    def backlog_bytes(self) -> int:
        """Bytes that engines have not taken yet."""
        return self._roster.backlog_bytes

    # Requests.

    def add(self, flight: Flight) -> None:
        """Send a new request to an engine, or park it until one can take it."""
        assert self._recipient is not None, "attach comes first"
        flight.number = next(self._numbers)
        self._flights[flight.request_id] = flight
        if flight.exchange is not None:
            flight.exchange.blocked_by = self._why_blocked
        with self._alone(flight):
            if self._ends_as_too_long(flight):
                return
            target = self._waiting.target_of(flight)
            if target is None:
                self._metrics.routed(self._model, Decision.WAITS)
                self._park(flight)
                self._dispatch()
            else:
                self._metrics.routed(self._model, Decision.SENT)
                self._send(flight, target)

    def abort(self, request_ids: Iterable[str]) -> None:
        """Stop these requests; unknown ids are ignored."""
        for request_id in request_ids:
            flight = self._flights.get(request_id)
            if flight is not None:
                if flight.cut is not None or flight.link is None:
                    audit.not_resumed(flight, "the request was aborted")
                self._stop(flight)
                self._drop(flight)

    def end_waiting(self) -> None:
        """End with NoEngine every request on which no engine works."""
        for flight in list(self._waiting):
            if flight.link is None or flight.link.condition is Condition.FROZEN:
                self._end(flight, NoEngine(self._model, self._retry_after_s))

    # Link events.

    def on_news(self, link: EngineLink) -> None:
        if self._capacity.note(link):
            self._refit()
        self._waiting.follow(link)
        self._dispatch(link)

    def on_outputs(self, link: EngineLink, frame: Outputs) -> None:
        now = self._clock()
        taken = []
        for output in frame.outputs:
            flight = self._owners.get(link, output.wire_id)
            if flight is None:
                continue  # aborted, or an attempt that no longer owns its request
            is_first = not flight.has_output
            try:
                if output.finish_reason == FinishReason.ABORT:
                    self._leave(flight, Loss.REFUSED, "the engine aborted it")
                    continue
                self._take(flight, output, now)
            except Exception:  # the other outputs of this step must arrive
                self._give_up(flight)
            else:
                taken.append((flight, output, is_first))
        if taken and self._recipient is not None:
            self._recipient.deliver(taken, now - frame.clock_s, now)
        if self._capacity.note(link):
            self._refit()
        self._dispatch(link)

    def on_trying(self, link: EngineLink, frame: Trying) -> None:
        flight = self._owners.get(link, frame.wire_id)
        if flight is not None:
            flight.suspicion.is_on_trial = True

    def on_rejected(self, link: EngineLink, frame: Rejected) -> None:
        self._capacity.changed(link)
        flight = self._owners.get(link, frame.wire_id)
        if flight is None:
            return
        flight.faults += frame.is_fault
        if frame.is_final or flight.faults >= MAX_FAULTS:
            self._end(flight, EngineRefused(self._model, link.engine, frame.reason))
        else:
            self._leave(flight, Loss.REFUSED, frame.reason)
            self._dispatch()

    def on_lost(self, link: EngineLink, loss: Loss, reason: str) -> None:
        self._roster.remove(link, reason)
        self._capacity.lost(link)
        self._waiting.lost(link)
        self._refit()
        if link.is_draining and loss in (Loss.RESET, Loss.SILENT):
            loss = Loss.DRAINED  # it announced its end, as a reclaimed spot node does
        lost = self._owners.of(link)
        for flight in lost:
            with self._alone(flight):
                self._leave(flight, loss, reason)
        if loss is Loss.DRAINED:
            self._metrics.drain_cut(self._model, len(lost))
        if link.description is not None and (lost or not link.is_draining):
            self._metrics.engine_lost(self._model, loss)
            log_loss(link, loss, reason, len(lost))
        self._dispatch()

    # From engine to engine.

    def _take(self, flight: Flight, output: Output, now: float) -> None:
        """Record an output of the engine that owns the request."""
        flight.has_output = True
        if output.token_ids:
            is_first, was_suspect = not flight.token_ids, flight.suspicion.is_suspect
            if flight.cut is not None:
                self._resumed(flight, flight.cut, now)
                flight.cut = None
            flight.suspicion.cleared(len(output.token_ids))
            flight.faults = 0
            flight.token_ids.extend(output.token_ids)
            flight.gap_s = None if flight.token_at is None else now - flight.token_at
            flight.token_at = now
            flight.span.took(len(output.token_ids))
            if was_suspect:
                self._owners.cleared(flight)
            if is_first or was_suspect:
                self._waiting.owned(flight)
        if output.finish_reason is not None:
            flight.span.finish(output.finish_reason)
            # No token since the cut: its grammar rejected the earlier tokens.
            if flight.cut is not None:
                audit.not_resumed(flight, "the engine finished it without a new token")
            self._drop(flight)

    def _leave(self, flight: Flight, loss: Loss, reason: str) -> bool:
        """Take the request from its engine and park it; False if it was convicted and ended."""
        assert flight.link is not None
        flight.span.end(loss.value, reason)
        if loss not in HARMLESS:
            verdict = flight.suspicion.crashed(
                is_core_death=loss is Loss.CORE_DIED, was_alone=flight.link.unanswered <= 1
            )
            if verdict is Verdict.CONVICTED:
                self._end(flight, RequestKillsEngines(self._model))
                return False
        if flight.cut is None:  # the gap began with the first loss since its last token
            flight.cut = Cut(loss, flight.link.engine, reason, self._clock())
        self._owners.discard(flight)
        flight.refused_by = flight.link if loss is Loss.REFUSED else flight.refused_by
        flight.link = None
        return self._park(flight)

    def _park(self, flight: Flight) -> bool:
        """Let the request wait for an engine; False if it is too long for each, and ended."""
        if self._ends_as_too_long(flight):
            return False
        flight.parked_at = self._clock()
        self._waiting.park(flight)
        return True

    def _dispatch(self, news: EngineLink | None = None) -> None:
        """Send requests that wait. `news`: the only engine that can have gained room since the last
        call; None: any."""
        if self._waiting and not self._waiting.dispatch(self._clock(), news):
            asyncio.get_running_loop().call_soon(self._dispatch)

    def _refit(self) -> None:
        """Fit the requests that wait to the engines, of which some came, left or changed."""
        self._note_limit()
        self._waiting.refit()
        most = self._capacity.most_tokens or math.inf
        for flight in [flight for flight in self._waiting if flight.length_tokens >= most]:
            if flight.link is None:
                with self._alone(flight):
                    self._ends_as_too_long(flight)

    def _send_safely(self, flight: Flight, target: Target) -> None:
        with self._alone(flight):
            self._send(flight, target)

    def _send(self, flight: Flight, target: Target) -> None:
        if flight.link is not None:  # moves away from a living engine
            loss = Loss.DRAINED if flight.link.is_draining else Loss.FROZEN
            self._stop(flight)
            if not self._leave(flight, loss, flight.link.reason) or flight.suspicion.is_suspect:
                return  # convicted, or waits for its trial
        link = self._roster.link(target.engine)
        if flight.attempt >= 0:
            is_trial = flight.suspicion.is_suspect
            self._metrics.routed(self._model, Decision.TRIAL if is_trial else Decision.MOVED)
        flight.begin(link)
        self._owners.add(flight)
        self._waiting.owned(flight)
        link.submit(flight.submit(target.dp_rank))
        self._capacity.sent(link, target.dp_rank, flight.length_tokens)

    # Ends.

    def _stop(self, flight: Flight) -> None:
        """Stop the current attempt at its engine, if it has one."""
        if flight.link is not None:
            flight.link.abort([flight.key])
            self._capacity.changed(flight.link)

    def _drop(self, flight: Flight) -> None:
        self._flights.pop(flight.request_id, None)
        self._owners.discard(flight)
        self._waiting.discard(flight)
        flight.span.end("aborted")

    def _why_blocked(self) -> FleetError | None:
        """The cause if a request's deadline passes now: NoEngine, or None for time alone."""
        return None if self._roster.num_working else NoEngine(self._model, self._retry_after_s)

    def _end(self, flight: Flight, error: FleetError) -> None:
        audit.not_resumed(flight, str(error))
        flight.span.end(error.code)
        self._stop(flight)
        self._drop(flight)
        if self._recipient is not None:
            self._recipient.fail(flight, error)

    def _ends_as_too_long(self, flight: Flight) -> bool:
        """End a request that is too long for every connected engine; False if there is none."""
        most = self._capacity.most_tokens
        if most is None or flight.length_tokens < most:
            return False
        self._end(flight, LongerThanContext(self._model, flight.length_tokens, most))
        return True

    @contextmanager
    def _alone(self, flight: Flight) -> Iterator[None]:
        """Let a failure end this request and no other."""
        try:
            yield
        except RequestError as error:
            self._end(flight, error)
        except Exception:
            self._give_up(flight)

    def _give_up(self, flight: Flight) -> None:
        """End a request whose handling has just raised."""
        logger.exception("failed to handle a request", extra={"request": flight.request_id})
        self._stop(flight)
        if self._recipient is not None:
            self._recipient.fail(flight, GatewayFailed())
        self._drop(flight)

    def _note_limit(self) -> None:
        """Tell the recipient if the connected engines now take fewer or more tokens."""
        described = self._roster.description
        if described is not None and described.max_model_len != self._limit:
            self._limit = described.max_model_len
            if self._recipient is not None:
                self._recipient.limit(self._limit)

    def _resumed(self, flight: Flight, cut: Cut, now: float) -> None:
        """Count and log the first token from the new engine."""
        gap_s = now - (flight.token_at if flight.token_at is not None else cut.at)
        self._metrics.resumed(self._model, cut.loss, gap_s)
        flight.span.resumed(gap_s)
        audit.resumed(flight, cut, gap_s)
