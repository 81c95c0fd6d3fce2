"""EngineLink: a gateway's end of the wire to one engine."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable
from ssl import SSLError
from typing import Final, Protocol, TypeVar

from qwenfleet.cluster.config.fleet import WireConfig
from qwenfleet.cluster.errors import ConfigError, ProtocolError
from qwenfleet.cluster.labels import Loss
from qwenfleet.deployments.dispatch.outbox import Outbox, largest_bytes
from qwenfleet.deployments.dispatch.routing import Target
from qwenfleet.deployments.ingress.errors import RequestTooLarge
from qwenfleet.deployments.registry.records import EngineRecord
from qwenfleet.deployments.wire import secret
from qwenfleet.deployments.wire.connection import Connection
from qwenfleet.deployments.wire.encoding import encode
from qwenfleet.deployments.wire.frames import (
    MAX_NUMBERS,
    MAX_OUTPUTS_BYTES,
    PROTOCOL_VERSION,
    Abort,
    Alive,
    AnyFrame,
    Challenge,
    Draining,
    EngineDescription,
    Hello,
    Lease,
    Lost,
    Outputs,
    Proof,
    RankLoad,
    Refused,
    Rejected,
    Renew,
    Submit,
    Trying,
    UnreadableSubmit,
    Welcome,
    pairs,
    speaks,
)
from qwenfleet.deployments.wire.lease_keeper import NO_KEEPER, Leases, Renewal
from qwenfleet.deployments.wire.liveness import OVERSLEPT_S, Condition, LearnedBound
from qwenfleet.deployments.wire.segments import whole
from qwenfleet.deployments.wire.tls import client_context

logger = logging.getLogger(__name__)

F = TypeVar("F")

SILENCE_FACTOR: Final = 3.0
SILENCE_HEARTBEATS: Final = 4
"""A host sends a frame with every heartbeat. A host that was silent for three times its longest
recent silence, and for at least four heartbeats, counts as lost even without a connection reset (a
network black hole)."""


class LinkEvents(Protocol):
    """Callbacks from a link to its owner. None of these should raise: a link logs an exception and
    goes on."""

    def on_news(self, link: EngineLink) -> None:
        """The link opened, or its engine's load or state changed."""
        ...

    def on_outputs(self, link: EngineLink, frame: Outputs) -> None: ...

    def on_trying(self, link: EngineLink, frame: Trying) -> None: ...

    def on_rejected(self, link: EngineLink, frame: Rejected) -> None: ...

    def on_lost(self, link: EngineLink, loss: Loss, reason: str) -> None: ...


class EngineLink:
    """One connection to one engine, from connect to loss. `on_lost` is called exactly once,
    whatever the cause."""

    def __init__(
        self,
        record: EngineRecord,
        *,
        gateway: str,
        wire: WireConfig,
        events: LinkEvents,
        clock: Callable[[], float],
        vllm_version: str = "",
        leases: Leases = NO_KEEPER,
    ) -> None:
        self.engine = record.id
        self.session = f"{gateway}-{secrets.token_hex(4)}"
        """Id of this connection: the engine may still hold an earlier one of this gateway."""
        self.is_draining = False
        self.is_refused = False
        """Whether gateway and engine cannot work together: another try would end alike."""
        self.condition = Condition.STEADY
        self.reason = ""
        """Why the engine drains or is not steady."""
        self.unanswered = 0
        """Attempts of any gateway without a token yet when the engine's core died."""
        self.description: EngineDescription | None = None
        self.record = record
        self._vllm_version = vllm_version
        self._leases = leases
        self._wire = wire
        self._events = events
        self._clock = clock
        self._connection: Connection | None = None
        self._load: list[RankLoad] = []
        self._heard_at = clock()
        self._silence = LearnedBound(
            SILENCE_FACTOR,
            floor_s=min(wire.heartbeat_s * SILENCE_HEARTBEATS, wire.lease_s),
            ceiling_s=wire.lease_s,
            unlearned_s=wire.lease_s,
        )
        self._outbox: Outbox | None = None
        self._unseen: dict[int, tuple[int, int]] = {}
        """(dp_rank, prompt tokens) by number of each attempt that the engine's reported load does
        not include yet."""
        self._has_large = asyncio.Event()

    async def run(self) -> None:
        """Connect, then exchange frames until the connection ends."""
        loss, reason = Loss.RESET, "the engine closed the connection"
        try:
            connection = await self._connect()
            self._tell(self._events.on_news, self)
            async with asyncio.TaskGroup() as tasks:
                others = [
                    tasks.create_task(self._keep_lease(connection)),
                    tasks.create_task(self._watch_silence()),
                    tasks.create_task(self._send_large()),
                ]
                loss, reason = await self._listen(connection)
                for task in others:
                    task.cancel()
        except* (OSError, TimeoutError, ProtocolError, ConfigError) as errors:
            error = errors.exceptions[0]
            if isinstance(error, SSLError | ConfigError):
                self.is_refused = True
            loss = Loss.SILENT if isinstance(error, TimeoutError) else Loss.RESET
            reason = _sentence(error)
        finally:
            if self._connection is not None:
                self._connection.close()
                self._connection = self._outbox = None
            self._leases.drop(self.session)
            self._tell(self._events.on_lost, self, loss, reason)

    @property
    def is_open(self) -> bool:
        return self._connection is not None

    @property
    def backlog_bytes(self) -> int:
        """Bytes for the engine that the network has not taken yet."""
        if self._connection is None or self._outbox is None:
            return 0
        return self._connection.backlog_bytes + self._outbox.waiting_bytes

    def fits(self, length_tokens: int) -> bool:
        """True if the engine's limit leaves room for another token after this many."""
        return self.description is not None and length_tokens < self.description.max_model_len

    @property
    def is_leaving(self) -> bool:
        """True if its streams should move to other engines."""
        return self.is_draining or self.condition is Condition.FROZEN

    def submit(self, submit: Submit) -> None:
        """Send an attempt. Raises RequestTooLarge for one that no frame can carry."""
        assert self._outbox is not None, "submit on a closed link"
        size_bytes = largest_bytes(submit)
        if size_bytes > submit.limit_bytes:
            raise RequestTooLarge(size_bytes, submit.limit_bytes)
        if self._outbox.submit(submit):
            self._has_large.set()
        tokens = len(submit.prompt_token_ids) + len(submit.output_token_ids)
        self._unseen[submit.number] = (submit.dp_rank or 0, tokens)

    def abort(self, numbers: list[int]) -> None:
        """Stop attempts, also those that are still on their way."""
        if self._connection is None or self._outbox is None:
            return
        sent = []
        for number in numbers:
            if self._outbox.withdraw(number):
                self._unseen.pop(number, None)
            else:
                sent.append(number)
        for start in range(0, len(sent), MAX_NUMBERS):
            self._connection.send(Abort(wire_ids=sent[start : start + MAX_NUMBERS]))

    def targets(self) -> list[Target]:
        """One routing target for each rank: the load last reported plus the submits sent since."""
        limits = self.description or EngineDescription(max_model_len=0)
        unseen_streams: dict[int, int] = {}
        unseen_tokens: dict[int, int] = {}
        for dp_rank, tokens in self._unseen.values():
            unseen_streams[dp_rank] = unseen_streams.get(dp_rank, 0) + 1
            unseen_tokens[dp_rank] = unseen_tokens.get(dp_rank, 0) + tokens
        return [
            Target(
                self.engine,
                rank.dp_rank,
                rank.running + rank.waiting + unseen_streams.get(rank.dp_rank, 0),
                rank.queued_prefill_tokens + unseen_tokens.get(rank.dp_rank, 0),
                max_streams=limits.max_num_seqs,
                step_tokens=limits.max_num_batched_tokens,
                prefill_tokens_per_s=rank.prefill_tokens_per_s,
                decode_step_s=rank.decode_step_s,
                kv_usage=rank.kv_usage,
            )
            for rank in self._load
        ]

    async def _connect(self) -> Connection:
        async with asyncio.timeout(self._wire.connect_timeout_s):
            files = self._wire.tls
            context = None if files is None else await asyncio.to_thread(client_context, files)
            host, port = self.record.host, self.record.port
            reader, writer = await asyncio.open_connection(host, port, ssl=context)
            connection = Connection(reader, writer)
            try:
                await self._greet(connection)
            except BaseException:
                connection.close()
                raise
        connection.accept(MAX_OUTPUTS_BYTES)
        self._connection = connection
        self._outbox = Outbox(connection, self._reject)
        self._heard_at = self._clock()
        return connection

    async def _greet(self, connection: Connection) -> None:
        hello = Hello(
            gateway=self.session,
            protocol=PROTOCOL_VERSION,
            vllm_version=self._vllm_version,
            nonce=secret.nonce(),
        )
        connection.send(hello)
        challenge = self._expect(Challenge, await connection.receive())
        known = (self.record.secret, self.session, hello.nonce, challenge.nonce)
        connection.send(Proof(secret.gateway_proof(*known)))
        welcome = self._expect(Welcome, await connection.receive())
        if not secret.is_equal(welcome.proof, secret.engine_proof(*known)):
            self.is_refused = True
            raise ProtocolError(f"engine {self.engine} did not prove that it knows its own secret")
        self._leave_lease(welcome)
        self.description = welcome.description
        ranks = welcome.description.data_parallel_size
        self._load = [RankLoad(dp_rank=rank) for rank in range(ranks)]

    def _leave_lease(self, welcome: Welcome) -> None:
        frame = whole(encode(Renew(self.session, welcome.lease_key)))
        where = (self.record.host, self.record.port)
        wire = self._wire
        self._leases.keep(Renewal(self.session, *where, frame, wire.lease_s, wire.tls))

    def _expect(self, kind: type[F], greeting: AnyFrame | UnreadableSubmit) -> F:
        problem = self._problem(greeting)
        if problem is not None:
            self.is_refused = True
            raise ProtocolError(problem)
        if not isinstance(greeting, kind):
            sent = type(greeting).__name__
            raise ProtocolError(f"engine {self.engine} sent {sent} instead of {kind.__name__}")
        return greeting

    def _problem(self, greeting: AnyFrame | UnreadableSubmit) -> str | None:
        """Why this gateway and this engine cannot work together; None if they can."""
        match greeting:
            case Refused(protocol=protocol) if not speaks(protocol):
                return (
                    f"engine {self.engine} uses protocol version {protocol}, this gateway "
                    f"{PROTOCOL_VERSION}"
                )
            case Refused(reason=reason):
                return f"engine {self.engine} refused the connection: {reason}"
            case Welcome(description=description):
                if not pairs(self._vllm_version, description.vllm_version):
                    return (
                        f"engine {self.engine} has vLLM {description.vllm_version}, this gateway "
                        f"{self._vllm_version}"
                    )
        return None

    async def _listen(self, connection: Connection) -> tuple[Loss, str]:
        """Handle frames until the engine announces its end; returns the loss and the reason."""
        while True:
            frame = await connection.receive()
            now = self._clock()
            self._silence.note(now - self._heard_at, now)
            self._heard_at = now
            if isinstance(frame, Lost):
                self.unanswered = frame.unanswered
                return frame.loss, frame.reason
            self._take(frame)

    def _take(self, frame: AnyFrame | UnreadableSubmit) -> None:
        match frame:
            case Outputs(load=load, received=received):
                self._note_load(load, received)
                self._tell(self._events.on_outputs, self, frame)
            case Alive(load=load, received=received):
                self._note_load(load, received)
                self._note_condition(frame)
                self._tell(self._events.on_news, self)
            case Trying():
                self._tell(self._events.on_trying, self, frame)
            case Rejected():
                self._reject(frame)
            case Draining(reason=reason):
                extra = {"engine": self.engine, "reason": reason}
                logger.info("engine is draining", extra=extra)
                self.is_draining, self.reason = True, reason
                self._tell(self._events.on_news, self)
            case _:
                logger.debug("ignored a frame", extra={"kind": type(frame).__name__})

    def _reject(self, frame: Rejected) -> None:
        self._unseen.pop(frame.wire_id, None)
        self._tell(self._events.on_rejected, self, frame)

    def _tell(self, event: Callable[..., None], *arguments: object) -> None:
        """Call the owner; its failure must not end the streams of this engine."""
        try:
            event(*arguments)
        except Exception:
            logger.exception("failed to handle an event", extra={"engine": self.engine})

    def _note_condition(self, frame: Alive) -> None:
        try:
            condition = Condition(frame.condition)
        except ValueError:  # a value from a newer host
            condition = Condition.STEADY
        if condition is not self.condition:
            logger.info(
                "engine condition changed",
                extra={
                    "engine": self.engine,
                    "condition": condition.value,
                    "reason": frame.reason,
                },
            )
        self.condition = condition
        if not self.is_draining:
            self.reason = frame.reason

    def _note_load(self, load: list[RankLoad], received: list[int]) -> None:
        if load:
            self._load = load
        for number in received:
            self._unseen.pop(number, None)

    async def _send_large(self) -> None:
        while self._outbox is not None:
            await self._has_large.wait()
            self._has_large.clear()
            await self._outbox.run()

    async def _watch_silence(self) -> None:
        """Raises TimeoutError once the host has been silent for too long."""
        pause_s = self._wire.heartbeat_s / 2
        while True:
            slept_at = self._clock()
            await asyncio.sleep(pause_s)
            now = self._clock()
            if now - slept_at > pause_s + OVERSLEPT_S:
                continue  # this process stalled: read first what arrived meanwhile
            if now - self._heard_at > self._silence.seconds:
                raise TimeoutError

    async def _keep_lease(self, connection: Connection) -> None:
        """Renew the lease here too: the keeper's pump may not run yet."""
        while True:
            await asyncio.sleep(self._wire.lease_s / 3)
            connection.send(Lease())


def _sentence(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "the engine was silent for too long"
    return str(error) or type(error).__name__
