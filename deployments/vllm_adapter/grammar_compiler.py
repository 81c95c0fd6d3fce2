"""Grammar compiler: a process that compiles grammars where they can be ended.

Run as a program by `grammar_process.py`, with a socket as its standard input. It imports the
bindings of xgrammar and nothing of vLLM, torch or transformers, and then forks a child for each
grammar: 43 MB and 0.4 s once, and a few milliseconds for each grammar. A child has limits of CPU
time and memory that the kernel enforces, so that nothing in it can go on.

A child compiles the grammar as an engine will, and then walks through it token by token: a grammar
that is quick to compile may take a second for each token, in the loop of an engine, or allow no
token at all.

Internals used here: xgrammar 0.2.8 `tvm_ffi_binding`, which its Python classes wrap in 265 MB of
torch and transformers; and of vLLM 0.32 how XgrammarBackend calls them.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import importlib.util
import math
import os
import random
import resource
import selectors
import signal
import socket
import struct
import sys
import time
import types
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import numpy as np

HEADER: Final = struct.Struct("!I")
WALKS: Final = (("random", 1), ("random", 2), ("short", 3))
"""How each walk chooses its tokens, and its seed: an expression that is ambiguous shows it with
many short tokens."""
WALK_TOKENS: Final = 256
WALK_S: Final = 1.0
"""CPU time of xgrammar in all walks. JSON schemas take 0.01 to 0.05 ms per token, an ambiguous
grammar seconds in all: 393 ms for token 184 of `root ::= root root | "a"` (xgrammar 0.2.8)."""
STEP_S: Final = 0.1
"""CPU time of one token, at most: an engine makes no token for anyone meanwhile."""
WORKING_FACTOR: Final = 4
"""Memory to compile a grammar, in sizes of the result: 2.5 was seen for 50,000 choices."""
DIE_WITH_PARENT: Final = 1
"""PR_SET_PDEATHSIG of Linux's prctl.h."""
WALL_FACTOR: Final = 10.0
"""A child that got so little CPU that it took this many times its CPU limit is ended as well."""


class Settings(msgspec.Struct, frozen=True):
    """The first message: what a model's engines compile with."""

    tokenizer: str
    """xgrammar's TokenizerInfo, as JSON."""
    any_whitespace: bool = True


class Job(msgspec.Struct, frozen=True):
    """A grammar to compile. `syntax` is json, regex, ebnf, lark or structural_tag."""

    number: int
    syntax: str
    text: str
    compile_s: float
    memory_bytes: int


class Verdict(msgspec.Struct, frozen=True):
    """How a job ended: ok, invalid, compile_s, memory, steps, dead_end, crash, or killed. The last
    one says nothing of the grammar: memory was short, or the CPU."""

    number: int
    end: str
    detail: str = ""


@dataclass
class _Child:
    pid: int
    number: int
    ends_at: float
    written: bytes = b""


def pack(message: msgspec.Struct) -> bytes:
    """A message with its length."""
    body = msgspec.msgpack.encode(message)
    return HEADER.pack(len(body)) + body


def load_bindings() -> Any:
    """Import xgrammar's compiled part without the Python package around it."""
    sys.modules["torch"] = None  # type: ignore[assignment] # tvm_ffi imports it if it can
    found = importlib.util.find_spec("xgrammar")
    if found is None or found.submodule_search_locations is None:
        raise ImportError("xgrammar is not installed")
    package = types.ModuleType("xgrammar")
    package.__path__ = list(found.submodule_search_locations)
    package.__package__ = "xgrammar"
    sys.modules["xgrammar"] = package
    importlib.import_module("xgrammar.load_binding")
    return importlib.import_module("xgrammar.tvm_ffi_binding._ffi_api")


class Compiler:
    """Compiles and walks, in a child."""

    def __init__(self, core: Any, settings: Settings) -> None:
        self._core = core
        self._tokenizer = core.TokenizerInfo.deserialize_json(settings.tokenizer)
        self._any_whitespace = settings.any_whitespace
        self._lengths = [len(token) for token in self._tokenizer.decoded_vocab()]
        self._mask = np.zeros((1, (self._tokenizer.vocab_size() + 31) // 32), dtype=np.int32)

    def compile(self, job: Job) -> Any:
        """Compile as vLLM's XgrammarBackend does, in one thread. Raises what xgrammar raises."""
        compiler = self._core.GrammarCompiler(self._tokenizer, 1, False, -1)
        match job.syntax:
            case "json":
                separators = None if self._any_whitespace else (",", ":")
                return compiler.compile_json_schema(
                    job.text, self._any_whitespace, None, separators, True, None, False
                )
            case "regex":
                return compiler.compile_regex(job.text)
            case "ebnf":
                return compiler.compile_grammar_from_strings(job.text, "root")
            case "lark":
                return compiler.compile_lark(job.text, [], [])
            case _:
                return compiler.compile_structural_tag(job.text)

    def walk(self, compiled: Any) -> tuple[str, str]:
        """Make up answers, token by token; returns an outcome and its detail."""
        spent_s = 0.0
        for choice, seed in WALKS:
            matcher = self._core.GrammarMatcher(compiled, None, False, 0, None)
            stops = [stop for stop in matcher.stop_token_ids() if stop < len(self._lengths)]
            chance = random.Random(seed)  # which tokens are tried
            for position in range(WALK_TOKENS):
                began_at = time.process_time()
                matcher.fill_next_token_bitmask(self._mask, 0, False)
                filled_s = time.process_time() - began_at
                bits = np.unpackbits(self._mask.view(np.uint8), bitorder="little")
                may_stop = bool(bits[stops].any())
                bits[stops] = 0
                allowed = np.flatnonzero(bits[: len(self._lengths)])
                if not len(allowed):
                    if may_stop:
                        break  # an answer ends here
                    return "dead_end", str(position)
                token = self._choose(choice, allowed, chance)
                began_at = time.process_time()
                matcher.accept_token(token, False)
                taken_s = filled_s + time.process_time() - began_at
                spent_s += taken_s
                if spent_s > WALK_S or (taken_s > STEP_S and position):  # the first fills caches
                    return "steps", ""
        return "ok", ""

    def _choose(self, choice: str, allowed: Any, chance: random.Random) -> int:
        tried = [int(allowed[chance.randrange(len(allowed))]) for _ in range(8)]
        return min(tried, key=self._lengths.__getitem__) if choice == "short" else tried[0]


def _run(compiler: Compiler, job: Job, output: int) -> None:
    """The child: report each stage, because the kernel may end it in the next."""
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 2)  # xgrammar's warnings quote the request
    os.nice(10)
    ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL)
    _volunteer()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    in_use = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()  # noqa: SIM115
    room = in_use + WORKING_FACTOR * job.memory_bytes
    resource.setrlimit(resource.RLIMIT_AS, (room, room))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, job.compile_s)
    try:
        compiled = compiler.compile(job)
    except MemoryError:
        return _report(output, "memory")
    except Exception as error:
        is_memory = "bad_alloc" in str(error)
        return _report(output, "memory" if is_memory else "invalid", reason_of(error))
    if compiled.memory_size_bytes() > job.memory_bytes:
        return _report(output, "memory", f"{compiled.memory_size_bytes() / 2**20:.0f} MiB")
    _report(output, "compiled")
    signal.setitimer(signal.ITIMER_PROF, 3 * WALK_S)  # with what the walk itself takes
    try:
        _report(output, *compiler.walk(compiled))
    except Exception as error:
        _report(output, "invalid", reason_of(error))


def _volunteer() -> None:
    """Ask the kernel to end this process first if memory runs out, not the gateway."""
    with suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
        file.write("1000")


def reason_of(error: Exception) -> str:
    """What xgrammar says, without the place in its source."""
    text = str(error).strip()
    if text.startswith("[") and ": " in text:
        text = text.split(": ", 1)[1]
    return " ".join(text.split())[:300]


def _report(output: int, outcome: str, detail: str = "") -> None:
    os.write(output, f"{outcome}\t{detail}\n".encode("utf-8", "replace"))


class Server:
    """Reads jobs, forks a child for each, and sends their verdicts."""

    def __init__(self, connection: socket.socket, core: Any) -> None:
        self._connection = connection
        self._core = core
        self._compiler: Compiler | None = None
        self._selector = selectors.DefaultSelector()
        self._selector.register(connection, selectors.EVENT_READ)
        self._children: dict[int, _Child] = {}
        """By the file descriptor that they write to."""

    def run(self) -> None:
        """Serve until the gateway closes the connection."""
        received = b""
        while True:
            for key, _ in self._selector.select(0.5 if self._children else None):
                if key.fileobj is not self._connection:
                    self._read_child(key.fd)
                    continue
                data = self._connection.recv(1 << 20)
                if not data:
                    self._end_children(math.inf)
                    return
                received = self._take(received + data)
            self._end_children(time.monotonic())

    def _take(self, received: bytes) -> bytes:
        while len(received) >= HEADER.size:
            (length,) = HEADER.unpack(received[: HEADER.size])
            end = HEADER.size + length
            if len(received) < end:
                break
            self._handle(received[HEADER.size : end])
            received = received[end:]
        return received

    def _handle(self, body: bytes) -> None:
        if self._compiler is None:
            self._compiler = Compiler(self._core, msgspec.msgpack.decode(body, type=Settings))
            gc.freeze()  # children share these pages
            self._connection.sendall(pack(Verdict(0, "ok")))
            return
        job = msgspec.msgpack.decode(body, type=Job)
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                self._connection.close()
                _run(self._compiler, job, writing)
                status = 0
            finally:
                os._exit(status)
        os.close(writing)
        wall_s = WALL_FACTOR * (job.compile_s + 3 * WALK_S)
        self._children[reading] = _Child(pid, job.number, time.monotonic() + wall_s)
        self._selector.register(reading, selectors.EVENT_READ)

    def _read_child(self, reading: int) -> None:
        child = self._children[reading]
        data = os.read(reading, 4096)
        if data:
            child.written += data
            return
        self._selector.unregister(reading)
        os.close(reading)
        del self._children[reading]
        _, status = os.waitpid(child.pid, 0)
        self._connection.sendall(pack(verdict(child.number, child.written, status)))

    def _end_children(self, now: float) -> None:
        for child in self._children.values():
            if child.ends_at < now:
                os.kill(child.pid, signal.SIGKILL)


def verdict(number: int, written: bytes, status: int) -> Verdict:
    """What a child's reports and its exit status say."""
    lines = written.decode("utf-8", "replace").splitlines()
    last, _, detail = lines[-1].partition("\t") if lines else ("", "", "")
    if last not in ("", "compiled"):
        return Verdict(number, last, detail)
    ended_by = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    if ended_by == signal.SIGKILL:
        return Verdict(number, "killed")
    if ended_by == signal.SIGPROF:
        return Verdict(number, "steps" if last else "compile_s")
    return Verdict(number, "crash", signal.Signals(ended_by).name if ended_by else "")


if __name__ == "__main__":
    Server(socket.socket(fileno=0), load_bindings()).run()
