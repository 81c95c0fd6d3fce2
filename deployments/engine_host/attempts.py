"""Attempts: the attempts that a host holds, the gateway of each, the suspects that wait for their
trial, and the speed of each rank as learned from outputs."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from qwenfleet.deployments.engine_host.core import CoreStep
from qwenfleet.deployments.engine_host.rank_speed import RankSpeed
from qwenfleet.deployments.telemetry.null_attempt import NO_ATTEMPT_SPAN
from qwenfleet.deployments.wire.connection import Connection
from qwenfleet.deployments.wire.frames import MAX_NUMBERS, Output, RankLoad, Submit, numbered

if TYPE_CHECKING:
    from qwenfleet.deployments.telemetry.null_attempt import AnyAttemptSpan

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class Session:
    """One gateway's connection."""

    gateway: str
    """The session's id, which begins with the gateway's."""
    connection: Connection
    leased_until: float
    received: list[int] = field(default_factory=list)
    """Numbers of the attempts that came, until a frame reports them."""
    owned: dict[int, str] = field(default_factory=dict)
    """Its attempts: the id in the core by the number that the gateway chose."""
    lease_key: bytes = b""
    """What its lease pump shows."""
    acknowledged_bytes: int = 0
    """Number of its connection at the last heartbeat."""
    moved_at: float = 0.0
    """When that number changed last."""

    def next_received(self) -> list[int]:
        """Take the numbers for the next frame, no more than any frame can carry."""
        taken, self.received = self.received[:MAX_NUMBERS], self.received[MAX_NUMBERS:]
        return taken


@dataclass
class Attempt:
    """One attempt, its gateway's session, and its prompt tokens until its first output."""

    session: Session
    number: int
    dp_rank: int
    prefill_tokens: int
    submit: Submit | None
    """What the core gets; None once it has it, because the host needs its tokens no longer."""
    span: AnyAttemptSpan = NO_ATTEMPT_SPAN
    is_answered: bool = False

    @property
    def is_in_core(self) -> bool:
        return self.submit is None


class Attempts:
    """Attempts by their id in the core. A suspect waits on the docket until each suspect before it
    has made a token or ended."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.are_none = asyncio.Event()
        self.are_none.set()
        self._held: dict[str, Attempt] = {}
        self._docket: deque[str] = deque()
        self._on_trial: str | None = None
        self._clock = clock
        self._serials = itertools.count(1)
        self._speeds: defaultdict[int, RankSpeed] = defaultdict(RankSpeed)

    def __contains__(self, key: str) -> bool:
        return key in self._held

    def __len__(self) -> int:
        return len(self._held)

    def new_key(self, session: Session) -> str:
        """Return an id for a core, of at most 64 characters. Never the same one twice, whatever the
        gateway sends: a duplicate id crashes a core."""
        return f"{next(self._serials)}@{session.gateway}"

    def add(
        self,
        key: str,
        session: Session,
        submit: Submit,
        span: AnyAttemptSpan = NO_ATTEMPT_SPAN,
    ) -> bool:
        """Hold an attempt; returns True if it can go to the core now."""
        tokens = len(submit.prompt_token_ids) + len(submit.output_token_ids)
        dp_rank = submit.dp_rank or 0
        attempt = Attempt(session, submit.number, dp_rank, tokens, submit, span)
        self._held[key] = attempt
        session.owned[submit.number] = key
        self.are_none.clear()
        if submit.is_trial:
            self._docket.append(key)
        else:
            self._enter_core(attempt)
        return not submit.is_trial

    def drop(self, key: str, how: str = "stopped") -> bool:
        """Forget an attempt; False if it was not held. `how` is the outcome in its trace."""
        attempt = self._held.pop(key, None)
        if attempt is None:
            return False
        attempt.session.owned.pop(attempt.number, None)
        if attempt.is_in_core:
            self._speeds[attempt.dp_rank].left(is_answered=attempt.is_answered)
        if key == self._on_trial:
            self._on_trial = None
        if not self._held:
            self.are_none.set()
        attempt.span.end(how)
        return True

    @property
    def unanswered(self) -> int:
        """Number of attempts in the core without output."""
        return sum(a.is_in_core and not a.is_answered for a in self._held.values())

    def next_trial(self) -> tuple[str, Session, Submit] | None:
        """The next suspect to try; None while another is on trial or none waits."""
        while self._on_trial is None and self._docket:
            key = self._docket.popleft()
            attempt = self._held.get(key)
            if attempt is not None and attempt.submit is not None:
                self._on_trial, submit = key, attempt.submit
                self._enter_core(attempt)
                return key, attempt.session, submit
        return None

    def _enter_core(self, attempt: Attempt) -> None:
        attempt.submit = None
        self._speeds[attempt.dp_rank].came(self._clock())

    def take(self, step: CoreStep, now: float) -> dict[Session, list[Output]]:
        """Record a step of the core; returns its outputs by session."""
        # A step is of one rank. Without outputs, only a single load entry tells which one.
        dp_rank = step.load[0].dp_rank if len(step.load) == 1 else None
        by_session: dict[Session, list[Output]] = {}
        for output in step.outputs:
            attempt = self._held.get(output.wire_id)
            if attempt is not None:  # else aborted meanwhile
                dp_rank = attempt.dp_rank
                by_session.setdefault(attempt.session, []).append(numbered(output, attempt.number))
                try:
                    self._answer(attempt, output)
                except Exception:  # bookkeeping only: its token goes out all the same
                    logger.exception("failed to record an output")
                    if output.finish_reason is not None:
                        self.drop(output.wire_id)
        if dp_rank is not None:
            waiting = sum(rank.waiting for rank in step.load if rank.dp_rank == dp_rank)
            self._speeds[dp_rank].stepped(now, waiting)
        return by_session

    def _answer(self, attempt: Attempt, output: Output[str]) -> None:
        if not attempt.is_answered:
            self._first_answer(attempt, output)
        if output.wire_id == self._on_trial and output.token_ids:
            self._on_trial = None
        attempt.span.took(len(output.token_ids))
        if output.finish_reason is not None:
            attempt.span.finish(output.finish_reason)
            self.drop(output.wire_id)

    def _first_answer(self, attempt: Attempt, output: Output[str]) -> None:
        new_tokens = None  # vLLM reports no cached tokens for a failed or resumed attempt
        if output.token_ids and output.cached_tokens is not None:
            new_tokens = max(0, attempt.prefill_tokens - output.cached_tokens)
        self._speeds[attempt.dp_rank].answered(new_tokens)
        attempt.is_answered = True
        attempt.prefill_tokens = 0

    def scheduled(self, key: str, ago_s: float) -> None:
        """Record in the trace that the core scheduled this attempt `ago_s` seconds ago."""
        attempt = self._held.get(key)
        if attempt is not None:
            attempt.span.scheduled(ago_s)

    def end_spans(self, how: str, reason: str) -> None:
        """End the spans of all attempts, because the host ends."""
        for attempt in self._held.values():
            attempt.span.end(how, reason)

    def load(self, ranks: Iterable[RankLoad]) -> list[RankLoad]:
        """The scheduler's figures plus what it was sent since its last step: attempts that it does
        not count yet, and prompt tokens without output."""
        now = self._clock()
        queued: Counter[int] = Counter()
        held: Counter[int] = Counter()
        for attempt in self._held.values():
            dp_rank = attempt.dp_rank
            queued[dp_rank] += attempt.prefill_tokens
            held[dp_rank] += 1
        return [
            RankLoad(
                dp_rank=rank.dp_rank,
                running=rank.running,
                waiting=max(rank.waiting, held[rank.dp_rank] - rank.running),
                queued_prefill_tokens=queued[rank.dp_rank],
                kv_usage=rank.kv_usage,
                prefill_tokens_per_s=self._speeds[rank.dp_rank].prefill_tokens_per_s(now),
                decode_step_s=self._speeds[rank.dp_rank].decode_step_s(now),
            )
            for rank in ranks
        ]
