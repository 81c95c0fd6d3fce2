"""GrammarProcess: a gateway's end of its grammar compiler, the process in grammar_compiler.py."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import subprocess
import sys
from typing import Final

import msgspec

from qwenfleet.deployments.vllm_adapter import grammar_compiler
from qwenfleet.deployments.vllm_adapter.grammar_compiler import HEADER, Job, Settings, Verdict, pack

logger = logging.getLogger(__name__)

START_S: Final = 60.0
"""A start takes 0.7 s on two busy CPU cores."""
LARGEST: Final = 64 * 2**10
"""Bytes of a verdict, at most."""
ONE_THREAD: Final = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
"""A process that forks must have no other threads."""


class CompilerLost(Exception):
    """The process ended, or did not start; a new one may work."""


class GrammarProcess:
    """Starts the process when it is first needed, and again after it has ended."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._process: subprocess.Popen[bytes] | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None
        self._starting = asyncio.Lock()
        self._waiting: dict[int, asyncio.Future[Verdict]] = {}
        self._last = 0

    async def start(self) -> None:
        """Start the process unless it runs. Raises CompilerLost."""
        async with self._starting:
            if self._writer is not None:
                return
            ours, theirs = socket.socketpair()
            self._process = await asyncio.to_thread(_spawn, theirs)
            reader, writer = await asyncio.open_unix_connection(sock=ours)
            try:
                writer.write(pack(self._settings))
                async with asyncio.timeout(START_S):
                    await _receive(reader)
            except (OSError, EOFError, TimeoutError) as error:
                writer.close()
                await self._reap()
                raise CompilerLost(f"the grammar compiler did not start: {error}") from error
            self._writer = writer
            self._reading = asyncio.create_task(self._read(reader))

    async def run(self, syntax: str, text: str, compile_s: float, memory_bytes: int) -> Verdict:
        """Compile one grammar; the process's own limits bound the wait. Raises CompilerLost."""
        await self.start()
        assert self._writer is not None
        self._last += 1
        job = Job(self._last, syntax, text, compile_s, memory_bytes)
        self._waiting[job.number] = future = asyncio.get_running_loop().create_future()
        self._writer.write(pack(job))
        verdict: Verdict = await future
        return verdict

    def close(self) -> None:
        """End the process; the kernel ends its children with it."""
        if self._reading is not None:
            self._reading.cancel()
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    async def _read(self, reader: asyncio.StreamReader) -> None:
        try:
            while True:
                found = await _receive(reader)
                future = self._waiting.pop(found.number, None)
                if future is not None and not future.done():
                    future.set_result(found)
        except (OSError, EOFError, msgspec.DecodeError) as error:
            logger.warning("the grammar compiler ended", extra={"reason": str(error)})
            await self._lose()

    async def _lose(self) -> None:
        assert self._writer is not None
        self._writer.close()
        self._writer = None
        lost, self._waiting = self._waiting, {}
        for future in lost.values():
            if not future.done():
                future.set_exception(CompilerLost("the grammar compiler ended"))
        await self._reap()

    async def _reap(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            await asyncio.to_thread(process.wait)


def _spawn(connection: socket.socket) -> subprocess.Popen[bytes]:
    """Start the program by its path: by its name, Python would import more of this project."""
    with connection:
        return subprocess.Popen(
            [sys.executable, "-P", grammar_compiler.__file__],
            stdin=connection.fileno(),
            env={**os.environ, **ONE_THREAD},
        )


async def _receive(reader: asyncio.StreamReader) -> Verdict:
    """Raises EOFError if the process has ended or sends something else."""
    (length,) = HEADER.unpack(await reader.readexactly(HEADER.size))
    if length > LARGEST:
        raise EOFError(f"a verdict of {length} bytes")
    return msgspec.msgpack.decode(await reader.readexactly(length), type=Verdict)
