"""Exchange: one HTTP request and its response, from the body's last byte to the answer's.

It adds what vLLM's app lacks: a deadline, keep-alives while a stream is silent, a readable end when
the engine is lost, and a status for a stream that is refused: it holds the start of an answer until
there is something to send with it.

Users of an exchange, all on the gateway's event loop: `GatewayApp` makes it and runs it once. The
`ModelClient` finds it in a context variable, because vLLM passes nothing through; it notes prompts,
steps and tokens, and ends it with `fail`. The `Dispatcher` sets `blocked_by`. A `Flight` carries it
between the two. Only the exchange sets its outcome.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from qwenfleet.cluster.errors import FleetError
from qwenfleet.cluster.labels import Outcome
from qwenfleet.deployments.ingress import answers
from qwenfleet.deployments.ingress.answers import Family
from qwenfleet.deployments.ingress.errors import (
    DeadlineExceeded,
    GatewayFailed,
)
from qwenfleet.deployments.ingress.outcome import outcome_of, outcome_of_status
from qwenfleet.deployments.telemetry.access_log import AccessEntry
from qwenfleet.deployments.telemetry.gateway_metrics import GatewayMetrics
from qwenfleet.deployments.telemetry.tracing import NO_REQUEST_SPAN

if TYPE_CHECKING:
    from qwenfleet.deployments.telemetry.tracing import AnyRequestSpan

logger = logging.getLogger(__name__)

ABORT_GRACE_S: Final = 1.0
"""Time for vLLM's app to stop by itself after a disconnect; then it is canceled."""

_current: ContextVar[Exchange | None] = ContextVar("exchange", default=None)


def current_exchange() -> Exchange | None:
    """Return the exchange of the current task; None outside an exchange."""
    return _current.get()


class Exchange:
    """Runs one app call. Times are seconds of `clock`; the model client notes token counts."""

    def __init__(
        self,
        *,
        model: str,
        family: Family,
        timeout_s: float,
        keep_alive_s: float,
        metrics: GatewayMetrics,
        clock: Callable[[], float] = time.monotonic,
        span: AnyRequestSpan = NO_REQUEST_SPAN,
        entry: AccessEntry | None = None,
        makes_tokens: bool = True,
        is_clients_deadline: bool = False,
    ) -> None:
        """`makes_tokens` is False for a route that needs no engine, which no objective judges.
        `is_clients_deadline` is True if the client chose `timeout_s`. `entry` is its line of the
        access log, which the caller writes."""
        self.model = model
        self.family = family
        self.span = span
        self.started_at = clock()
        self.is_queued = True
        """Whether an engine has yet to start on it."""
        self.is_quick = False
        """Whether an editor waits for a short answer: it goes before others. The app sets it."""
        self.prompt_tokens = self.cached_tokens = self.output_tokens = 0
        self.prompt_logprobs = self.output_logprobs = 0
        self.outcome: Outcome | None = None
        self.request_id: str | None = None
        """The id that vLLM's app gave it; None before that."""
        self.blocked_by: Callable[[], FleetError | None] = lambda: None
        """Returns, at the deadline, the error that kept the request waiting, if any."""
        self._entry = AccessEntry("POST") if entry is None else entry
        self._makes_tokens = makes_tokens
        self._is_clients_deadline = is_clients_deadline
        self._timeout_s, self._keep_alive_s = timeout_s, keep_alive_s
        self._metrics = metrics
        self._clock = clock
        self._token_at: float | None = None
        self._failure: asyncio.Future[FleetError] = asyncio.get_running_loop().create_future()
        self._over = asyncio.Event()
        self._held: list[Message] = []
        """What the app has sent while the request can still be refused with a status: the start of
        its answer, and events that it makes before an engine works."""
        self._status: int | None = None
        """The status that the client got; None while nothing was sent."""
        self._is_stream = self._is_finished = self._is_sending = False
        self._is_between_events = True
        self._events = 0
        self._sent_at = self.started_at

    def fail(self, error: FleetError) -> None:
        """End the exchange with this error; only the first one counts."""
        if not self._failure.done():
            self._failure.set_result(error)

    def note_attempt(self, engine: str, number: int) -> None:
        """Note that this engine has it now, or one of its sequences; the first number is 0."""
        self._entry.engine = engine
        self._entry.resumes += number > 0

    def note_prompt(self, count: int) -> None:
        """Note that `count` prompt tokens go to an engine."""
        self.prompt_tokens += count
        self._metrics.tokens(self.model, prompt=count)

    def note_scheduled(self, at: float) -> None:
        """Note that an engine began to work on it; only the first one ends the queue time."""
        if self.is_queued:
            self.is_queued = False
            self._metrics.queued(self.model, max(0.0, at - self.started_at))

    def note_tokens(self, count: int, cached: int, now: float, gap_s: float | None) -> None:
        """Note new tokens of one of its sequences at `now`, `gap_s` seconds after the last ones of
        that sequence; None: they are its first. `cached` prompt tokens needed no prefill."""
        self.output_tokens += count
        self.cached_tokens += cached
        self._metrics.tokens(self.model, cached=cached, output=count)
        if count == 0:
            return
        if self._entry.ttft_s is None:
            self._entry.ttft_s = now - self.started_at
        if gap_s is None:
            self._metrics.first_token(self.model, now - self.started_at)
        else:
            self._metrics.next_token(self.model, gap_s)
        self._token_at = now

    async def hold(
        self, admission: Coroutine[Any, Any, ASGIApp], receive: Receive, send: Send
    ) -> ASGIApp | None:
        """Wait for the app of a request that is held; None if the exchange ended first, because its
        client disconnected or it failed. Raises what the admission raises."""
        self._send = send
        self.outcome = Outcome.DISCONNECTED
        admitted = asyncio.ensure_future(admission)
        hang_up = asyncio.ensure_future(_until_disconnect(receive))
        try:
            ends: set[asyncio.Future[Any]] = {admitted, hang_up, self._failure}
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if admitted.done():
                self.outcome = None
                return admitted.result()
            if self._failure.done():  # the gateway's drain is over
                await self._answer(self._failure.result())
            return None
        finally:
            admitted.cancel()
            hang_up.cancel()
            if self.outcome is not None:
                self._record()

    async def run(
        self, app: ASGIApp, scope: Scope, body: bytes, receive: Receive, send: Send
    ) -> None:
        """Answer the request through `app`. Raises only what cancels the caller."""
        token = _current.set(self)
        requests = [{"type": "http.request", "body": body, "more_body": False}]
        self._send = send

        async def receive_body() -> Message:
            if requests:
                return requests.pop()
            await self._over.wait()
            return {"type": "http.disconnect"}

        call = asyncio.ensure_future(app(scope, receive_body, self._forward))
        hang_up = asyncio.ensure_future(_until_disconnect(receive))
        try:
            await self._watch(call, hang_up)
        except asyncio.CancelledError:
            self.outcome = Outcome.DISCONNECTED
            raise
        finally:
            self._over.set()
            hang_up.cancel()
            await _end(call)
            _current.reset(token)
            self._record()

    async def _watch(self, call: asyncio.Future[None], hang_up: asyncio.Future[None]) -> None:
        """Wait until the app, the client, the engine or the deadline ends the exchange."""
        deadline = self.started_at + self._timeout_s
        while True:
            now = self._clock()
            wake_at = min(deadline, self._next_look(now))
            ends: set[asyncio.Future[Any]] = {call, hang_up, self._failure}
            await asyncio.wait(
                ends,
                timeout=max(0.0, wake_at - now),
                return_when=asyncio.FIRST_COMPLETED,
            )
            if self._failure.done():  # the engine was lost, or rejected it
                return await self._answer(self._failure.result())
            if call.done():
                return await self._settle(call)
            if hang_up.done():  # the client disconnected
                self.outcome = Outcome.DISCONNECTED
                return None
            now = self._clock()
            if now >= deadline:
                error = self.blocked_by() or DeadlineExceeded(self._timeout_s)
                return await self._answer(error)
            if self._is_silent and now - self._sent_at >= self._keep_alive_s:
                await self._release()
                await self._put(answers.keep_alive(self.family), more=True)

    def _next_look(self, now: float) -> float:
        """Return when a keep-alive may be due; a stream may begin at any time."""
        due = self._sent_at + self._keep_alive_s
        return due if due > now else now + self._keep_alive_s

    @property
    def _is_silent(self) -> bool:
        """Whether a keep-alive fits between two events of an open stream."""
        is_open = self._is_stream and not self._is_finished
        return is_open and self._is_between_events and not self._is_sending

    async def _settle(self, call: asyncio.Future[None]) -> None:
        """Record how the app ended; turn its exception into an error that the client can read."""
        failure = asyncio.CancelledError() if call.cancelled() else call.exception()
        if failure is not None or not self._is_finished:
            extra = {"model": self.model, "request": self.request_id}
            logger.error("model app failed", exc_info=failure, extra=extra)
            await self._answer(GatewayFailed())
            return
        self.outcome = outcome_of_status(self._status)
        if self.outcome is not Outcome.COMPLETED:
            is_clients = self.outcome is Outcome.REFUSED
            self._entry.reason = "invalid_request" if is_clients else "app_failed"
            self._metrics.rejected(self.model, self._entry.reason)

    def _record(self) -> None:
        outcome, now = self.outcome or Outcome.FAILED, self._clock()
        self._metrics.request_ended(self.model, outcome, is_judged=self._makes_tokens)
        if self._makes_tokens and outcome is Outcome.COMPLETED:
            self._metrics.completed(self.model, now - self.started_at)
        elif self._makes_tokens and self._token_at is None and outcome is not Outcome.REFUSED:
            self._metrics.no_token(self.model, now - self.started_at)
        elif self._token_at is not None:
            self._metrics.no_next_token(self.model, now - self._token_at)
        tokens = self.prompt_tokens, self.cached_tokens, self.output_tokens
        self.span.answer(outcome, self._status, *tokens)
        entry = self._entry
        entry.outcome, entry.status, entry.model = outcome.value, self._status, self.model
        entry.request = self.request_id or ""
        entry.prompt_tokens, entry.cached_tokens, entry.output_tokens = tokens

    async def _answer(self, error: FleetError) -> None:
        """Send the error as a response, as a stream's last event, or as the end of a body."""
        self.outcome = outcome_of(
            error,
            has_output=self.output_tokens > 0,
            is_clients_deadline=self._is_clients_deadline,
        )
        self._metrics.rejected(self.model, error.code)
        self._entry.reason = error.code
        self.span.fail(error)
        if self._is_finished:
            return
        self._is_finished = True
        try:
            async with asyncio.timeout(ABORT_GRACE_S):
                if self._status is None:
                    self._status = error.status
                    await respond(self._send, error, self.family)
                elif self._is_stream:
                    end = b"" if self._is_between_events else b"\n\n"
                    await self._put(
                        end + answers.error_event(error, self.family, self._events), more=False
                    )
                else:
                    await self._put(b"", more=False)
        except TimeoutError:
            extra = {"model": self.model, "request": self.request_id}
            logger.info("client stopped reading", extra=extra)

    async def _forward(self, message: Message) -> None:
        """Pass on what the app sends, until the exchange has ended otherwise."""
        if self._is_finished or self._failure.done() or self._over.is_set():
            return
        self._held.append(message)
        if message["type"] == "http.response.start":
            kinds = [value for name, value in message.get("headers", ()) if name == b"content-type"]
            self._is_stream = any(kind.startswith(b"text/event-stream") for kind in kinds)
            return
        body = message.get("body", b"")
        self._events += body.count(b"\n\n")
        if body:
            self._is_between_events = body.endswith((b"\n\n", b"\r\n\r\n"))
        self._is_finished = not message.get("more_body", False)
        if self._is_finished or not self._may_be_refused:
            await self._release()

    @property
    def _may_be_refused(self) -> bool:
        """Whether what came so far says nothing yet: vLLM's Responses API sends two events before
        it asks an engine (vLLM 0.32 entrypoints/openai/responses/serving.py)."""
        is_early = self.family is Family.RESPONSES and self.is_queued
        return self._status is None and self._is_stream and is_early

    async def _release(self) -> None:
        """Send what is held, in one go: no keep-alive may come between."""
        self._is_sending = True
        try:
            while self._held:
                message = self._held.pop(0)
                if message["type"] == "http.response.start":
                    self._status = message["status"]
                await self._send(message)
        finally:
            self._is_sending = False
            self._sent_at = self._clock()

    async def _put(self, body: bytes, *, more: bool) -> None:
        self._sent_at = self._clock()
        await self._send({"type": "http.response.body", "body": body, "more_body": more})


async def respond(send: Send, error: FleetError, family: Family) -> None:
    """Send `error` as a whole HTTP response."""
    await send(
        {
            "type": "http.response.start",
            "status": error.status,
            "headers": answers.headers(error),
        }
    )
    await send({"type": "http.response.body", "body": answers.error_body(error, family)})


async def _until_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _end(call: asyncio.Future[None]) -> None:
    """Give the app time to notice the end, then cancel it."""
    if not call.done():
        try:
            await asyncio.wait({call}, timeout=ABORT_GRACE_S)
        finally:
            call.cancel()
        await asyncio.wait({call}, timeout=ABORT_GRACE_S)
    if not call.cancelled() and call.done():
        call.exception()
