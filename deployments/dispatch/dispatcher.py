"""Dispatcher: the requests of one model at one gateway, each owned by one engine at a time.

It keeps what is needed to resume a request anywhere (prompt, parameters and every token so far),
and gives the request to another engine when its own is lost, frozen or draining. Output counts only
from the attempt that owns the request now, so that a zombie engine cannot add a token.
"""

from __future__ import annotations

import itertools
import logging
import random
import time
from collections.abc import Callable, Iterable
from typing import Final, Protocol

from qwenfleet.cluster.config.fleet import WireConfig
from qwenfleet.cluster.errors import FleetError
from qwenfleet.cluster.labels import Decision, FinishReason, Loss
from qwenfleet.deployments.dispatch import audit
from qwenfleet.deployments.dispatch.flight import Cut, Flight
from qwenfleet.deployments.dispatch.link import EngineLink, targets_of
from qwenfleet.deployments.dispatch.roster import Roster
from qwenfleet.deployments.dispatch.routing import Target, choose, with_room
from qwenfleet.deployments.dispatch.suspicion import Verdict
from qwenfleet.deployments.ingress.errors import EngineRefused, NoEngine, RequestKillsEngines
from qwenfleet.deployments.registry.records import EngineRecord
from qwenfleet.deployments.telemetry.gateway_metrics import GatewayMetrics
from qwenfleet.deployments.wire.frames import (
    EngineDescription,
    Output,
    Outputs,
    Rejected,
    Submit,
    Trying,
    wire_id,
)
from qwenfleet.deployments.wire.liveness import Condition

logger = logging.getLogger(__name__)

PATIENCE_S: Final = 2.0
"""A stream without an engine waits this long for one with room, then queues like a new request."""
HARMLESS: Final = frozenset({Loss.DRAINED, Loss.REFUSED})
"""Losses that a request cannot have caused."""


class Recipient(Protocol):
    """The owner of a dispatcher's requests. Neither method may raise."""

    def deliver(
        self, outputs: list[tuple[Flight, Output, bool]], shift_s: float, now: float
    ) -> None:
        """Take outputs, each with its flight and whether it is the request's first. Adding
        `shift_s` to a time of the engine's clock gives the gateway's; `now` is the gateway's."""
        ...

    def fail(self, flight: Flight, error: FleetError) -> None:
        """End the request with this error."""
        ...


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
    ) -> None:
        self._model = model
        self._gateway = gateway
        self._retry_after_s = retry_after_s
        self._metrics = metrics
        self._clock = clock
        self._rng = rng or random.Random()
        self._recipient: Recipient | None = None
        self._roster = Roster(model, gateway=gateway, wire=wire, events=self, clock=clock)
        self._flights: dict[str, Flight] = {}
        self._by_key: dict[str, Flight] = {}
        self._moving: dict[str, Flight] = {}
        """Requests that wait for an engine, or for their turn to leave one."""
        self._trial_link: EngineLink | None = None
        """The engine on which suspects are tried."""
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
        self._flights.clear()
        self._by_key.clear()
        self._moving.clear()
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
        return len(self._moving)

    # Requests.

    def add(self, flight: Flight) -> None:
        """Send a new request to an engine, or park it until one can take it."""
        assert self._recipient is not None, "attach comes first"
        flight.number = next(self._numbers)
        self._flights[flight.request_id] = flight
        if flight.exchange is not None:
            flight.exchange.blocked_by = self._why_blocked
        has_queue = any(other.link is None for other in self._moving.values())
        target = choose(targets_of(self._links_without_trials()), flight.length_tokens, self._rng)
        if has_queue or target is None:  # it must not overtake those that wait
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
                if flight.link is not None:
                    flight.link.abort([flight.key])
                self._drop(flight)

    def end_waiting(self) -> None:
        """End with NoEngine every request on which no engine works."""
        for flight in list(self._moving.values()):
            if flight.link is None or flight.link.condition is Condition.FROZEN:
                self._end(flight, NoEngine(self._model, self._retry_after_s))

    # Link events.

    def on_news(self, link: EngineLink) -> None:
        if link.is_leaving:
            for flight in self._owned_by(link):
                self._moving[flight.request_id] = flight
        self._dispatch()

    def on_outputs(self, link: EngineLink, frame: Outputs) -> None:
        now = self._clock()
        taken = []
        for output in frame.outputs:
            flight = self._by_key.get(output.wire_id)
            if flight is None or flight.link is not link:
                continue  # aborted, or an attempt that no longer owns its request
            if output.finish_reason == FinishReason.ABORT:
                self._leave(flight, Loss.REFUSED, "the engine aborted it")
                continue
            taken.append((flight, output, not flight.has_output))
            self._take(flight, output, now)
        if taken and self._recipient is not None:
            self._recipient.deliver(taken, now - frame.clock_s, now)
        self._dispatch()

    def on_trying(self, link: EngineLink, frame: Trying) -> None:
        flight = self._by_key.get(frame.wire_id)
        if flight is not None and flight.link is link:
            flight.suspicion.is_on_trial = True

    def on_rejected(self, link: EngineLink, frame: Rejected) -> None:
        flight = self._by_key.get(frame.wire_id)
        if flight is None or flight.link is not link:
            return
        if frame.is_final:
            self._end(flight, EngineRefused(self._model, link.engine, frame.reason))
        else:
            self._leave(flight, Loss.REFUSED, frame.reason)
            self._dispatch()

    def on_lost(self, link: EngineLink, loss: Loss, reason: str) -> None:
        self._roster.remove(link)
        if link.is_draining and loss in (Loss.RESET, Loss.SILENT):
            loss = Loss.DRAINED  # it announced its end, as a reclaimed spot node does
        if self._trial_link is link:
            self._trial_link = None
        lost = self._owned_by(link)
        if loss is Loss.DRAINED:
            self._metrics.drain_cut(self._model, len(lost))
        if link.description is not None and (lost or not link.is_draining):
            self._metrics.engine_lost(self._model, loss)
            logger.warning(
                "engine lost",
                extra={
                    "engine": link.engine,
                    "loss": loss.value,
                    "reason": reason,
                    "requests": len(lost),
                },
            )
        for flight in lost:
            self._leave(flight, loss, reason)
        self._dispatch()

    # From engine to engine.

    def _owned_by(self, link: EngineLink) -> list[Flight]:
        return [flight for flight in self._flights.values() if flight.link is link]

    def _take(self, flight: Flight, output: Output, now: float) -> None:
        """Record an output of the engine that owns the request."""
        flight.has_output = True
        if output.token_ids:
            if flight.cut is not None:
                self._resumed(flight, flight.cut, now)
                flight.cut = None
            flight.suspicion.cleared(len(output.token_ids))
            flight.token_ids += output.token_ids
            flight.gap_s = None if flight.token_at is None else now - flight.token_at
            flight.token_at = now
            flight.span.took(len(output.token_ids))
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
        self._by_key.pop(flight.key, None)
        flight.refused_by = flight.link if loss is Loss.REFUSED else flight.refused_by
        flight.link = None
        self._park(flight)
        return True

    def _park(self, flight: Flight) -> None:
        self._moving[flight.request_id] = flight
        flight.parked_at = self._clock()

    def _dispatch(self) -> None:
        """Send moving requests to engines with room, in order of their turn."""
        if not self._moving:
            return
        now = self._clock()
        usable = self._roster.usable()
        for flight in sorted(self._moving.values(), key=lambda flight: flight.turn):
            links = [link for link in usable if link is not flight.link]
            # An engine that refused comes last.
            links = [link for link in links if link is not flight.refused_by] or links
            if flight.link is not None and not flight.link.is_leaving:
                del self._moving[flight.request_id]  # its engine recovered: stay
            elif flight.link is not None and all(link.is_leaving for link in links):
                continue  # the others are leaving too
            elif flight.suspicion.is_suspect:
                self._put_on_trial(flight, links)  # it might crash an engine with others
            else:
                targets = targets_of(links)
                # Still served, or within its patience: do not delay other streams.
                if flight.link is not None or now < flight.parked_at + PATIENCE_S:
                    targets = with_room(targets, flight.length_tokens)
                target = choose(targets, flight.length_tokens, self._rng)
                if target is None:
                    break  # later requests must not overtake
                self._send(flight, target)

    def _links_without_trials(self) -> list[EngineLink]:
        """Engines for new requests, without the trial engine unless it is the only one: a new
        request that crashed it would convict an innocent suspect."""
        usable = self._roster.usable()
        if self._trial_link is None:
            return usable
        if not any(flight.suspicion.is_suspect for flight in self._owned_by(self._trial_link)):
            self._trial_link = None
        return [link for link in usable if link is not self._trial_link] or usable

    def _put_on_trial(self, flight: Flight, links: list[EngineLink]) -> None:
        """Send a suspect to the trial engine, one at a time. The engine's host makes suspects of
        other gateways wait too."""
        if self._trial_link not in links:
            self._trial_link = None
        elif any(f.suspicion.is_suspect for f in self._owned_by(self._trial_link)):
            return
        link = self._trial_link
        targets = targets_of(links if link is None else [link])
        target = choose(targets, flight.length_tokens, self._rng)
        if target is not None:
            self._send(flight, target)
            self._trial_link = flight.link

    def _send(self, flight: Flight, target: Target) -> None:
        if flight.link is not None:  # moves away from a living engine
            loss = Loss.DRAINED if flight.link.is_draining else Loss.FROZEN
            flight.link.abort([flight.key])
            if not self._leave(flight, loss, flight.link.reason) or flight.suspicion.is_suspect:
                return  # convicted, or waits for its trial
        link = self._roster.link(target.engine)
        self._moving.pop(flight.request_id, None)
        if flight.attempt >= 0:
            is_trial = flight.suspicion.is_suspect
            self._metrics.routed(self._model, Decision.TRIAL if is_trial else Decision.MOVED)
        flight.attempt += 1
        flight.suspicion.is_on_trial = False  # until this engine's Trying frame
        flight.link = link
        flight.key = wire_id(self._gateway, flight.request_id, flight.attempt)
        self._by_key[flight.key] = flight
        link.submit(
            Submit(
                request_id=flight.request_id,
                attempt=flight.attempt,
                prompt_token_ids=flight.prompt_token_ids,
                request=flight.payload,
                max_tokens=flight.max_tokens,
                output_token_ids=flight.token_ids,
                priority=flight.priority,
                cache_salt=flight.cache_salt,
                dp_rank=target.dp_rank,
                is_trial=flight.suspicion.is_suspect,
                trace_headers=flight.traced(link.engine),
            )
        )

    # Ends.

    def _drop(self, flight: Flight) -> None:
        self._flights.pop(flight.request_id, None)
        self._by_key.pop(flight.key, None)
        flight.span.end("aborted")
        self._moving.pop(flight.request_id, None)

    def _why_blocked(self) -> FleetError | None:
        """The cause if a request's deadline passes now: NoEngine, or None for time alone."""
        return None if self._roster.num_working else NoEngine(self._model, self._retry_after_s)

    def _end(self, flight: Flight, error: FleetError) -> None:
        audit.not_resumed(flight, str(error))
        flight.span.end(error.code)
        if flight.link is not None:
            flight.link.abort([flight.key])
        self._drop(flight)
        if self._recipient is not None:
            self._recipient.fail(flight, error)

    def _resumed(self, flight: Flight, cut: Cut, now: float) -> None:
        """Count and log the first token from the new engine."""
        gap_s = now - (flight.token_at if flight.token_at is not None else cut.at)
        self._metrics.resumed(self._model, cut.loss, gap_s)
        flight.span.resumed(gap_s)
        audit.resumed(flight, cut, gap_s)
