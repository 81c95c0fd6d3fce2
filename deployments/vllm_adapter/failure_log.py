"""Why vLLM's processes failed, as they logged it.

A core or worker of vLLM logs its exception and ends; its parent raises only "See root cause above".
FailureHandler runs in those processes and keeps each logged exception in a file, which `reason`
reads in the replica. Imports no vLLM, because logging is set up before anything else.
"""

from __future__ import annotations

import json
import logging
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Final, TypeGuard

POINTER: Final = "root cause"
"""Part of messages that only point to another process (vLLM 0.32 v1/engine/utils.py,
v1/executor/multiproc_executor.py)."""
ENDS: Final = (
    "EngineCore failed to start.",
    "EngineCore encountered a fatal error.",
    "WorkerProc failed to start.",
    "WorkerProc failed.",
)
"""Lines with which a process of vLLM ends (vLLM 0.32 v1/engine/core.py,
v1/executor/multiproc_executor.py)."""
LONGEST: Final = 600
"""Characters of a reason; vLLM's advice follows its numbers."""
HOST: Final = re.compile(r"(?:https?://|host=['\"])([^/'\"\s:]+)")


class FailureHandler(logging.Handler):
    """Appends each logged exception to a file."""

    def __init__(self, path: str) -> None:
        super().__init__(logging.ERROR)
        self._path = Path(path)

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        if error is None:
            return
        try:
            line = json.dumps([record.getMessage(), sentence(error)])
            with self._path.open("a", encoding="utf-8") as file:
                file.write(f"{line}\n")
        except Exception:  # as every handler of logging
            self.handleError(record)


def reason(path: Path) -> str:
    """The first failure in a file of FailureHandlers that does not point to another; empty without
    any. The first of several processes is the one that the others lost."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    found = [(event, what) for event, what in map(json.loads, lines) if POINTER not in what]
    ends = [what for event, what in found if event in ENDS]
    return next(iter([*ends, *(what for _, what in found)]), "")


def sentence(error: BaseException) -> str:
    """The part of an exception that an operator needs: what network call failed, if one did, then
    the message without stack traces."""
    text = str(error).strip() or type(error).__name__
    text = " ".join(text.split("Traceback")[0].split())
    unreachable = next(filter(_is_network, _chain(error)), None)
    if unreachable is not None:
        hosts = [m[1] for e in _chain(error) for m in HOST.finditer(str(e))]
        problem = unreachable.strerror or str(unreachable) or type(unreachable).__name__
        text = f"cannot reach {hosts[0] if hosts else 'a server'}: {problem}. {text}"
    return text[:LONGEST].rstrip(". ")  # the error that holds it goes on after a period


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The exception and those that led to it, the first one last."""
    seen: set[int] = set()
    at: BaseException | None = error
    while at is not None and id(at) not in seen:
        seen.add(id(at))
        yield at
        at = at.__cause__ or (None if at.__suppress_context__ else at.__context__)


def _is_network(error: BaseException) -> TypeGuard[OSError]:
    """Whether this is what the operating system says about a connection."""
    return isinstance(error, socket.gaierror | ConnectionError | TimeoutError)
