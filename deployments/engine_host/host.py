"""EngineHost: serves one engine core to any number of gateways over the wire.

It tracks which gateway owns which attempt. An attempt is stopped when its gateway aborts it, closes
the connection or lets its lease expire, so that an engine never works on abandoned requests.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from qwenfleet.cluster.config.fleet import WireConfig
from qwenfleet.cluster.errors import ProtocolError
from qwenfleet.deployments.engine_host import admission, core_watch, delivery
from qwenfleet.deployments.engine_host.attempts import Attempts, Session
from qwenfleet.deployments.engine_host.core import Core, CoreDead, CoreFrozen, CoreStep
from qwenfleet.deployments.engine_host.greeting import Greeter
from qwenfleet.deployments.engine_host.leases import Leases
from qwenfleet.deployments.engine_host.port import Port
from qwenfleet.deployments.engine_host.pulse import Pulse
from qwenfleet.deployments.telemetry.tracing import NO_SPANS
from qwenfleet.deployments.wire.connection import Connection
from qwenfleet.deployments.wire.frames import (
    FIRST_FRAME_BYTES,
    Abort,
    Alive,
    Draining,
    EngineDescription,
    Frame,
    Lease,
    Lost,
    Outputs,
    RankLoad,
    Rejected,
    Renew,
    Submit,
    Trying,
    UnreadableSubmit,
    Welcome,
    shortened,
)
from qwenfleet.deployments.wire.liveness import OVERSLEPT_S

if TYPE_CHECKING:
    from qwenfleet.deployments.telemetry.tracing import AnySpans

logger = logging.getLogger(__name__)


class EngineHost:
    """Serves one core to gateways. `run` never returns; it raises CoreDead when the core is
    lost."""

    def __init__(
        self,
        core: Core,
        *,
        engine: str,
        model: str,
        secret: str,
        description: EngineDescription,
        wire: WireConfig,
        clock: Callable[[], float] = time.monotonic,
        spans: AnySpans = NO_SPANS,
    ) -> None:
        self.orphans = 0
        """Attempts aborted because their gateway disconnected."""
        self._core = core
        self._engine = engine
        self._model = model
        self._description = description
        self._wire = wire
        self._clock = clock
        self._spans = spans
        self._greeter = Greeter(
            engine,
            secret,
            description.vllm_version,
            timeout_s=wire.connect_timeout_s,
            clock=clock,
        )
        self._port = Port(wire)
        self._draining: Draining | None = None
        self._drain_end: asyncio.Timeout | None = None
        """The deadline of a drain in progress; None otherwise."""
        self._sessions: dict[str, Session] = {}
        self._leases = Leases(wire.lease_s, clock)
        self._attempts = Attempts(clock)
        self._core_load: list[RankLoad] = [
            RankLoad(dp_rank=rank) for rank in range(description.data_parallel_size)
        ]
        self._step = 0
        self._pulse = Pulse(clock())

    async def listen(self, host: str) -> tuple[str, int]:
        """Listen on a free port of `host`; returns the address for the registry. Raises ConfigError
        for files of TLS that cannot be read."""
        return await self._port.open(host, self._serve_connection)

    async def run(self) -> None:
        """Deliver the core's steps to the gateways until the core dies."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._heartbeat())
                tasks.create_task(self._port.keep_fresh())
                while True:
                    await self._deliver(await self._core.next_step())
                    await self._hold_trials()
        except* CoreDead as dead:
            cause = dead.exceptions[0]
            lost = Lost(
                reason=shortened(str(cause)),
                is_frozen=isinstance(cause, CoreFrozen),
                unanswered=self._attempts.unanswered,
            )
            await self._say_goodbye(lost)
            raise CoreDead(str(cause)) from None

    async def drain(self, reason: str, deadline_s: float) -> None:
        """Ask the gateways to move their streams to other engines, wait for that at most
        `deadline_s` seconds, then close all connections."""
        self._port.close()
        self._draining = Draining(reason=shortened(reason), deadline_s=deadline_s)
        self._broadcast(self._draining)
        try:
            async with asyncio.timeout(deadline_s) as self._drain_end:
                await self._attempts.are_none.wait()
        except TimeoutError:
            logger.warning(
                "drain timed out, interrupting streams", extra={"requests": len(self._attempts)}
            )
        finally:
            self._drain_end = None
        await self._say_goodbye(Lost(reason=self._draining.reason, is_drained=True))

    def hasten(self, reason: str, deadline_s: float) -> None:
        """Shorten a drain in progress to end in `deadline_s` seconds, if that is sooner."""
        end = self._drain_end
        at = asyncio.get_running_loop().time() + deadline_s
        if end is not None and not end.expired() and at < (end.when() or at):
            end.reschedule(at)
            self._draining = Draining(reason=shortened(reason), deadline_s=deadline_s)
            self._broadcast(self._draining)

    @property
    def load(self) -> list[RankLoad]:
        return self._attempts.load(self._core_load)

    @property
    def quarantine(self) -> str:
        """Why gateways should not send new work; empty while they may."""
        return self._pulse.reason

    # The wire.

    async def _serve_connection(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        connection = Connection(reader, writer, FIRST_FRAME_BYTES)
        address = str((writer.get_extra_info("peername") or ("unknown",))[0])
        session: Session | None = None
        try:
            session = await self._greet(connection, address)
            while session is not None:
                await self._handle_safely(session, await connection.receive())
        except OSError as error:
            extra = {"engine": self._engine, "reason": str(error)}
            logger.info("gateway disconnected", extra=extra)
        except ProtocolError as error:
            logger.warning("gateway sent an invalid frame", extra={"reason": str(error)})
        finally:
            connection.close()
            if session is not None:
                await self._forget(session)

    async def _greet(self, connection: Connection, address: str) -> Session | None:
        met = await self._greeter.meet(connection, address, self._sessions)
        if isinstance(met, Renew):
            await self._leases.follow(connection, met, self._sessions)
            return None
        if met is None:
            return None
        hello, proof = met
        session = self._sessions[hello.gateway] = self._leases.open(hello.gateway, connection)
        connection.send(
            Welcome(
                engine=self._engine,
                model=self._model,
                description=self._description,
                lease_s=self._wire.lease_s,
                proof=proof,
                lease_key=session.lease_key,
            )
        )
        if self._draining is not None:
            connection.send(self._draining)
        return session

    async def _handle_safely(self, session: Session, frame: Frame | UnreadableSubmit) -> None:
        """Handle a frame. A failure that nobody foresaw must not end other requests."""
        try:
            await self._handle(session, frame)
        except (OSError, ProtocolError):
            raise
        except Exception:
            extra = {"gateway": session.gateway, "kind": type(frame).__name__}
            logger.exception("failed to handle a frame", extra=extra)

    async def _handle(self, session: Session, frame: Frame | UnreadableSubmit) -> None:
        self._leases.renew(session)
        match frame:
            case Submit():
                await self._submit(session, frame)
            case UnreadableSubmit(number=number, problem=problem):
                session.received.append(number)
                reason = shortened(f"it cannot be decoded: {problem}")
                session.connection.send(Rejected(number, reason))
            case Abort(wire_ids=numbers):
                owned = session.owned
                await self._stop([owned[number] for number in numbers if number in owned])
            case Lease():
                pass
            case _:
                raise ProtocolError(f"unexpected {type(frame).__name__} frame from a gateway")

    async def _submit(self, session: Session, submit: Submit) -> None:
        session.received.append(submit.number)
        refusal = self._refusal(session, submit)
        if refusal is not None:
            session.connection.send(refusal)
            return
        key = self._attempts.new_key(session)
        try:
            if not self._attempts:
                self._pulse.work_came(self._clock())
            span = self._spans.in_engine(submit, self._engine, self._model)
            can_enter = self._attempts.add(key, session, submit, span)
        except Exception as error:
            self._reject(key, session, submit.number, error)
            return
        if can_enter:
            await self._give(key, session, submit)
        else:
            await self._hold_trials()

    def _refusal(self, session: Session, submit: Submit) -> Rejected | None:
        if submit.number in session.owned:
            return Rejected(submit.number, "this attempt is already running here")
        if self._draining is not None:
            return Rejected(submit.number, self._draining.reason, is_final=False)
        return admission.refuse_attempt(submit, self._description)

    async def _give(self, key: str, session: Session, submit: Submit) -> None:
        """Give the core an attempt that is already held."""
        try:
            await self._core.add(key, submit)
        except Exception as error:
            self._reject(key, session, submit.number, error)
            return
        if key not in self._attempts:
            await self._abort([key])  # dropped while the core took it

    def _reject(self, key: str, session: Session, number: int, error: Exception) -> None:
        """Tell the gateway that its attempt did not reach the core, and forget it."""
        self._attempts.drop(key, "rejected")
        is_known = isinstance(error, ValueError | CoreDead)
        reason = shortened(str(error))
        if not is_known:
            logger.error("failed to take an attempt", exc_info=error, extra={"attempt": key})
            reason = f"the engine failed to take it ({type(error).__name__}), see the engine's log"
        is_final = isinstance(error, ValueError)
        session.connection.send(Rejected(number, reason, is_final=is_final, is_fault=not is_known))

    async def _abort(self, keys: list[str]) -> None:
        """Stop attempts in the core that are no longer held."""
        try:
            await self._core.abort(keys)
        except Exception:  # the other attempts go on
            logger.exception("failed to abort", extra={"requests": len(keys)})

    async def _hold_trials(self) -> None:
        """Give the core the next suspect, if none is on trial."""
        while (trial := self._attempts.next_trial()) is not None:
            key, session, submit = trial
            session.connection.send(Trying(wire_id=submit.number))
            await self._give(key, session, submit)

    async def _stop(self, keys: Iterable[str]) -> None:
        stopped = [key for key in list(keys) if self._attempts.drop(key)]
        if stopped:
            await self._abort(stopped)
            await self._hold_trials()

    async def _forget(self, session: Session) -> None:
        """End a closed session: tokens for it can no longer be delivered, so its attempts stop."""
        if self._sessions.get(session.gateway) is session:
            del self._sessions[session.gateway]
            if session.owned:
                self.orphans += len(session.owned)
                logger.warning(
                    "aborted requests of a disconnected gateway",
                    extra={"gateway": session.gateway, "requests": len(session.owned)},
                )
        await self._stop(session.owned.values())

    # The core.

    async def _deliver(self, step: CoreStep) -> None:
        self._step += 1
        now = self._clock()
        self._pulse.step(now)
        if step.load:
            self._core_load = step.load
        if step.scheduled is not None:
            for key, at in step.scheduled:
                self._attempts.scheduled(key, now - at)
        by_session = self._attempts.take(step, now)
        load = self.load
        for session, outputs in by_session.items():
            frame = Outputs(
                outputs=outputs,
                load=load,
                received=session.next_received(),
                step=self._step,
                clock_s=now,
            )
            for rejected in delivery.send(session.connection, frame):
                session.connection.send(rejected)
                if rejected.wire_id in session.owned:
                    await self._stop([session.owned[rejected.wire_id]])

    async def _heartbeat(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            slept_at = loop.time()
            await asyncio.sleep(self._wire.heartbeat_s)
            slept_s = loop.time() - slept_at
            now = self._clock()
            if slept_s > self._wire.heartbeat_s + OVERSLEPT_S:
                self._excuse(slept_s, now)
                continue
            await core_watch.check(
                self._core,
                self._pulse,
                self._engine,
                now,
                has_work=bool(self._attempts),
                late_s=self._wire.heartbeat_s,
            )
            load = self.load
            for session in self._leases.lapsed(self._sessions.values()):
                logger.warning("lease expired", extra={"gateway": session.gateway})
                session.connection.abort()
                await self._forget(session)
            for session in list(self._sessions.values()):
                session.connection.send(
                    Alive(
                        load=load,
                        received=session.next_received(),
                        step=self._step,
                        step_age_s=self._pulse.age_s(now),
                        clock_s=now,
                        condition=self._pulse.condition.value,
                        reason=self._pulse.reason,
                    )
                )

    def _excuse(self, stalled_s: float, now: float) -> None:
        """Count a stall of this process against neither the core nor the gateways: their steps and
        lease renewals of that time are still unread."""
        logger.warning("event loop stalled", extra={"seconds": round(stalled_s, 1)})
        self._pulse.excuse(now)
        self._leases.excuse(self._sessions.values(), stalled_s)

    def _broadcast(self, frame: Frame) -> None:
        for session in self._sessions.values():
            session.connection.send(frame)

    async def _say_goodbye(self, frame: Lost) -> None:
        self._port.close()  # gateways must not reconnect while the last spans are sent
        self._attempts.end_spans(frame.loss.value, frame.reason)
        self._broadcast(frame)
        sessions = list(self._sessions.values())
        self._sessions.clear()  # their attempts end with the host and are not orphans
        await asyncio.gather(
            *(session.connection.flush(timeout_s=1.0) for session in sessions),
            return_exceptions=True,
        )
        for session in sessions:
            session.connection.close()
