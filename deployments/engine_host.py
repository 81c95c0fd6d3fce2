"""EngineHost: one engine core, served to any number of gateways over the wire.

It owns which gateway wants which attempt. An attempt is stopped when its gateway aborts it, closes
the connection or lets its lease lapse, so that no engine works for nobody.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from qwenfleet.cluster.config import WireConfig
from qwenfleet.cluster.errors import ProtocolError
from qwenfleet.deployments.connection import Connection
from qwenfleet.deployments.core import Core, CoreDead, CoreStep
from qwenfleet.deployments.transport import (
    PROTOCOL_VERSION,
    Abort,
    Alive,
    Draining,
    EngineDescription,
    Frame,
    Hello,
    Lease,
    Lost,
    Output,
    Outputs,
    RankLoad,
    Refused,
    Rejected,
    Submit,
    Welcome,
    speaks,
    wire_id,
)

logger = logging.getLogger(__name__)


@dataclass
class _Attempt:
    """An attempt that the core runs, and the prompt tokens that wait for their first output."""

    session: _Session
    prefill_tokens: int
    dp_rank: int


@dataclass(eq=False)
class _Session:
    """One gateway's connection."""

    gateway: str
    connection: Connection
    leased_until: float
    received: int = 0
    owned: set[str] = field(default_factory=set)


class EngineHost:
    """Serves one core to gateways. `run` returns never; it raises CoreDead when the core is
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
    ) -> None:
        self._core = core
        self._engine = engine
        self._model = model
        self._secret = secret
        self._description = description
        self._wire = wire
        self._clock = clock
        self._server: asyncio.Server | None = None
        self._sessions: dict[str, _Session] = {}
        self._attempts: dict[str, _Attempt] = {}
        self._idle = asyncio.Event()
        self._idle.set()
        self._core_load: list[RankLoad] = [
            RankLoad(dp_rank=rank) for rank in range(description.data_parallel_size)
        ]
        self._step = 0
        self._stepped_at = clock()

    async def listen(self, host: str) -> tuple[str, int]:
        """Open the wire on a free port of `host`; returns the address for the registry."""
        self._server = await asyncio.start_server(self._serve_connection, host, 0)
        name = self._server.sockets[0].getsockname()
        return str(name[0]), int(name[1])

    async def run(self) -> None:
        """Carry steps from the core to the gateways for as long as the core lives."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._heartbeat())
                while True:
                    self._deliver(await self._core.next_step())
        except* CoreDead as dead:
            reason = str(dead.exceptions[0])
            await self._say_goodbye(Lost(reason=reason))
            raise CoreDead(reason) from None

    async def drain(self, reason: str, deadline_s: float) -> None:
        """Ask for no new work, wait for what runs, at most `deadline_s` seconds, then close the
        wire."""
        if self._server is not None:
            self._server.close()
        self._broadcast(Draining(reason=reason, deadline_s=deadline_s))
        try:
            async with asyncio.timeout(deadline_s):
                await self._idle.wait()
        except TimeoutError:
            logger.warning("streams cut", extra={"requests": len(self._attempts)})
        await self._say_goodbye(Lost(reason=reason))

    @property
    def load(self) -> list[RankLoad]:
        """The scheduler's own figures, brought up to date by what we sent it since its last step:
        attempts that it does not count yet, and prompt tokens that no output has answered."""
        queued: Counter[int] = Counter()
        held: Counter[int] = Counter()
        for attempt in self._attempts.values():
            queued[attempt.dp_rank] += attempt.prefill_tokens
            held[attempt.dp_rank] += 1
        return [
            RankLoad(
                dp_rank=rank.dp_rank,
                running=rank.running,
                waiting=max(rank.waiting, held[rank.dp_rank] - rank.running),
                queued_prefill_tokens=queued[rank.dp_rank],
                kv_usage=rank.kv_usage,
            )
            for rank in self._core_load
        ]

    # The wire.

    async def _serve_connection(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        connection = Connection(reader, writer)
        session: _Session | None = None
        try:
            async with asyncio.timeout(self._wire.connect_timeout_s):
                session = await self._greet(connection)
            while session is not None:
                await self._handle(session, await connection.receive())
        except (ConnectionError, TimeoutError) as error:
            logger.info("gateway gone", extra={"engine": self._engine, "reason": str(error)})
        except ProtocolError as error:
            logger.warning("gateway broke the wire", extra={"reason": str(error)})
        finally:
            connection.close()
            if session is not None:
                await self._forget(session)

    async def _greet(self, connection: Connection) -> _Session | None:
        hello = await connection.receive()
        if not isinstance(hello, Hello):
            raise ProtocolError(f"the first frame is {type(hello).__name__}, not Hello")
        if not hmac.compare_digest(hello.secret, self._secret):
            connection.send(Refused(reason="the secret is not this engine's"))
            return None
        if not speaks(hello.protocol):
            connection.send(
                Refused(reason=f"protocol {hello.protocol} is too far from {PROTOCOL_VERSION}")
            )
            return None
        earlier = self._sessions.get(hello.gateway)
        session = _Session(hello.gateway, connection, self._clock() + self._wire.lease_s)
        self._sessions[hello.gateway] = session
        # Welcome goes out before anything waits: a step or heartbeat must not come in between.
        connection.send(
            Welcome(
                engine=self._engine,
                model=self._model,
                description=self._description,
                lease_s=self._wire.lease_s,
            )
        )
        if earlier is not None:
            await self._hand_over(earlier, session, frozenset(hello.owned))
        return session

    async def _hand_over(self, earlier: _Session, session: _Session, owned: frozenset[str]) -> None:
        """A gateway came back: keep what it still owns, stop the rest."""
        for key in earlier.owned & owned:
            self._attempts[key].session = session
        session.owned = earlier.owned & owned
        abandoned = earlier.owned - owned
        earlier.owned = set()
        earlier.connection.close()
        await self._stop(abandoned)

    async def _handle(self, session: _Session, frame: Frame) -> None:
        session.leased_until = self._clock() + self._wire.lease_s
        match frame:
            case Submit():
                await self._submit(session, frame)
            case Abort(wire_ids=keys):
                await self._stop(set(keys) & session.owned)
            case Lease():
                pass
            case _:
                raise ProtocolError(f"a gateway does not send {type(frame).__name__}")

    async def _submit(self, session: _Session, submit: Submit) -> None:
        session.received += 1
        key = wire_id(session.gateway, submit.request_id, submit.attempt)
        if key in self._attempts:
            # The same id twice would end the core (vLLM 0.32 scheduler.add_request asserts).
            session.connection.send(Rejected(wire_id=key, reason="this attempt already runs here"))
            return
        self._attempts[key] = _Attempt(
            session, prefill_tokens=len(submit.prompt_token_ids), dp_rank=submit.dp_rank or 0
        )
        session.owned.add(key)
        self._idle.clear()
        try:
            await self._core.add(key, submit)
        except ValueError as error:
            self._drop(key)
            session.connection.send(Rejected(wire_id=key, reason=str(error)))
            return
        if key not in self._attempts:
            await self._core.abort([key])  # its lease lapsed while the core took it

    async def _stop(self, keys: Iterable[str]) -> None:
        stopped = [key for key in keys if self._drop(key)]
        if stopped:
            await self._core.abort(stopped)

    def _drop(self, key: str) -> bool:
        attempt = self._attempts.pop(key, None)
        if attempt is None:
            return False
        attempt.session.owned.discard(key)
        if not self._attempts:
            self._idle.set()
        return True

    async def _forget(self, session: _Session) -> None:
        """The connection is gone, and with it every token that would still have crossed it."""
        if self._sessions.get(session.gateway) is session:
            del self._sessions[session.gateway]
        await self._stop(set(session.owned))

    # The core.

    def _deliver(self, step: CoreStep) -> None:
        self._step += 1
        self._stepped_at = self._clock()
        if step.load:
            self._core_load = step.load
        by_session: dict[_Session, list[Output]] = {}
        for output in step.outputs:
            attempt = self._attempts.get(output.wire_id)
            if attempt is None:
                continue
            attempt.prefill_tokens = 0
            by_session.setdefault(attempt.session, []).append(output)
            if output.finish_reason is not None:
                self._drop(output.wire_id)
        load = self.load
        for session, outputs in by_session.items():
            session.connection.send(
                Outputs(
                    outputs=outputs,
                    load=load,
                    received=session.received,
                    step=self._step,
                    clock_s=self._stepped_at,
                )
            )

    async def _heartbeat(self) -> None:
        while True:
            await asyncio.sleep(self._wire.heartbeat_s)
            now = self._clock()
            load = self.load
            for session in list(self._sessions.values()):
                if session.leased_until < now:
                    logger.warning("lease lapsed", extra={"gateway": session.gateway})
                    session.connection.close()
                    await self._forget(session)
                    continue
                session.connection.send(
                    Alive(
                        load=load,
                        received=session.received,
                        step=self._step,
                        step_age_s=now - self._stepped_at,
                        clock_s=now,
                    )
                )

    def _broadcast(self, frame: Frame) -> None:
        for session in self._sessions.values():
            session.connection.send(frame)

    async def _say_goodbye(self, frame: Frame) -> None:
        self._broadcast(frame)
        for session in list(self._sessions.values()):
            try:
                await session.connection.flush(timeout_s=1.0)
            except (ConnectionError, TimeoutError):
                continue
            finally:
                session.connection.close()
