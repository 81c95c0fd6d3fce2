"""Keeper of one node's HAProxy: starts it for Ray Serve, and starts it again when it dies.

Runs as a program, with the standard library only, because Serve starts HAProxy at each change of
the gateways. Serve's manager knows its HAProxy by the process that it started, so this program
turns into HAProxy and leaves a watcher. When HAProxy dies, the watcher starts another at once with
the same configuration, and then ends the manager, which could not reload a process that it did not
start. Serve starts a new manager; its HAProxy takes over from the watcher's.

Serve starts HAProxy on every node with a replica, and each one passes requests to the gateways of
all nodes. `haproxy_config.adapt` changes what Serve's configuration lets clients and others do.
"""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

POLL_S: Final = 0.1
SETTLE_S: Final = 0.3
"""Serve stops HAProxy a moment before it ends the manager; a restart must not come between."""
MANAGER_S: Final = 3.0
"""Time for Serve to end the manager itself, as it does when it stops."""
SOCKET_TIMEOUT_S: Final = 1.0
SHARED_S: Final = 3.0
"""HAProxy reads its configuration in 0.1 s, and ends if it cannot use it."""
RIVALS_S: Final = 30.0
"""Time after a start in which another HAProxy may still be starting: its keeper is a Python
program, which took 0.5 s with eight programs on two cores."""
RIVALS_POLL_S: Final = 1.0
MAX_DESCRIPTORS: Final = 2**20
"""Linux' own bound of open files (fs.nr_open), where none is set."""
MAX_RESTARTS: Final = 5
"""A HAProxy that keeps dying is left to Serve."""
ADDRESS_BOUND: Final = "QWENFLEET_REQUESTS_PER_ADDRESS"
"""Variable with the fleet's `gateway.admission.max_requests_per_address`; unset for no bound."""

_GATEWAY: Final = re.compile(r"^\s*server \S+ \S+:\d+ (?!.*\bbackup\s*$)", re.MULTILINE)
_SOCKET: Final = re.compile(r"^\s*stats socket (\S+)", re.MULTILINE)


@dataclass(frozen=True)
class Process:
    """One process; its start tells it from a later process with the same pid."""

    pid: int
    started: int
    """Clock ticks since the machine's start."""

    @property
    def order(self) -> tuple[int, int]:
        """Order of starts; of two in one tick, the later one mostly has the higher pid."""
        return self.started, self.pid

    def lives(self) -> bool:
        return self == process(self.pid)

    def kill(self) -> None:
        if self.lives():
            with suppress(OSError):
                os.kill(self.pid, signal.SIGKILL)


@dataclass(frozen=True)
class Job:
    """What a watcher has to keep running."""

    binary: str
    arguments: tuple[str, ...]
    config: str
    socket: str
    """Path of its administration socket; the next HAProxy takes the same one."""
    journal: str
    """File that gets a line for each restart."""
    haproxy: Process
    manager: Process
    raylet: Process


def process(pid: int) -> Process | None:
    """Return a running process; None if it has ended."""
    fields = _stat(pid)
    return None if fields is None or fields[0] in "ZX" else Process(pid, int(fields[19]))


def parent(pid: int) -> int:
    fields = _stat(pid)
    return 0 if fields is None else int(fields[1])


def _stat(pid: int) -> list[str] | None:
    """Return the fields of /proc/PID/stat after the name, which may contain anything."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None


def main(arguments: Sequence[str]) -> None:
    """Become HAProxy: `BINARY JOURNAL ARGUMENT...`; or watch one: `--watch JOB`."""
    if arguments[0] == "--watch":
        Watch(_decode(arguments[1])).run()
        return
    binary, journal, *own = arguments
    if "-f" in own:
        config = Path(own[own.index("-f") + 1])
        try:
            prepare(config)
            own += take_over(binary, config, own)
            _spawn_watcher(binary, journal, own, config)
        except Exception as error:  # without a keeper, HAProxy still has to run
            print(f"qwenfleet: HAProxy has no keeper: {error}", file=sys.stderr)
    os.execv(binary, [binary, "-dS", *own])


def prepare(config: Path) -> None:
    """Bound what HAProxy and its clients may do, and close its directory to other users."""
    # Imported here because the program below extends the path first.
    from qwenfleet.cluster.local.private import close_to_others
    from qwenfleet.deployments.haproxy_config import Bounds, adapt

    close_to_others(config.parent)
    text = config.read_text()
    _, descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)
    if descriptors == resource.RLIM_INFINITY:
        descriptors = MAX_DESCRIPTORS
    changed = adapt(text, Bounds(descriptors, int(os.environ.get(ADDRESS_BOUND) or 0)))
    if changed != text:
        copy = config.with_suffix(f".{os.getpid()}")
        copy.write_text(changed)
        copy.replace(config)


def take_over(binary: str, config: Path, arguments: Sequence[str]) -> list[str]:
    """Return the arguments that make a manager's first HAProxy replace the watcher's.

    A new manager knows no gateway for a moment, and its HAProxy would answer 404 meanwhile. So this
    gives it the last configuration with gateways, as long as the HAProxy that has it runs.
    """
    kept = config.with_suffix(".kept")
    has_gateways = _GATEWAY.search(config.read_text()) is not None
    if has_gateways:
        copy = kept.with_suffix(f".{os.getpid()}")
        shutil.copyfile(config, copy)
        copy.replace(kept)  # a keeper that starts meanwhile reads the whole of one
    admin = _SOCKET.search(config.read_text())
    if "-sf" in arguments or admin is None:
        return []
    replacing = _replacing(binary, config, admin[1])
    if replacing and kept.exists() and not has_gateways:
        shutil.copyfile(kept, config)
    return replacing


def _running(binary: str, config: Path) -> list[int]:
    """Return the HAProxy processes with this configuration."""
    wanted = os.fsencode(binary), os.fsencode(config)
    found = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            if entry.name.isdigit():
                command = (entry / "cmdline").read_bytes().split(b"\0")
                if command[0] == wanted[0] and wanted[1] in command:
                    found.append(int(entry.name))
    return found


def _spawn_watcher(binary: str, journal: str, arguments: list[str], config: Path) -> None:
    manager = os.getppid()
    own, above, raylet = (process(pid) for pid in (os.getpid(), manager, parent(manager)))
    admin = _SOCKET.search(config.read_text())
    if own is None or above is None or raylet is None or admin is None:
        return  # the manager has ended: Serve starts another
    words = tuple(_without_reload(arguments))
    job = Job(binary, words, str(config), admin[1], journal, own, above, raylet)
    subprocess.Popen(
        [sys.executable, "-I", "-S", __file__, "--watch", json.dumps(asdict(job))],
        stdin=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C in a terminal is for the fleet's launcher
    )


def _without_reload(arguments: Sequence[str]) -> list[str]:
    """Return a start's arguments without those that name the HAProxy before it."""
    kept = []
    is_pid = False
    words = iter(arguments)
    for word in words:
        is_pid = word == "-sf" or (is_pid and word.isdigit())
        if word == "-x":
            next(words, None)
        elif not is_pid:
            kept.append(word)
    return kept


def _decode(text: str) -> Job:
    tree = json.loads(text)
    for name in ("haproxy", "manager", "raylet"):
        tree[name] = Process(**tree[name])
    return Job(**tree | {"arguments": tuple(tree["arguments"])})


class Watch:
    """Watches one HAProxy until another takes over, or until it is stopped on purpose."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._haproxy = job.haproxy
        self._has_answered = False
        """Whether HAProxy has started: Serve itself sees to one that does not."""
        self._has_manager = True
        """Whether the manager lived when HAProxy was last seen alive."""
        self._started_at = time.monotonic()
        """When HAProxy was started, in monotonic seconds."""
        self._rivals_at = 0.0
        """When to look for an earlier HAProxy again."""
        self._restarts = 0
        self._restarted_at: float | None = None

    def run(self) -> None:
        while self._look():
            time.sleep(POLL_S)

    def _look(self) -> bool:
        """Act on what has happened; returns False when nothing is left to watch."""
        if not self._job.raylet.lives():  # its gateways end too, and nothing replaces them
            self._haproxy.kill()
            return False
        if self._haproxy.lives():
            if not self._has_answered:
                self._has_answered = self._has_started()
            self._stop_earlier()
            return self._settle()
        with suppress(ChildProcessError):
            os.waitpid(self._haproxy.pid, os.WNOHANG)
        died_at = time.monotonic()
        if not self._has_answered or self._has_successor():
            return False
        time.sleep(SETTLE_S)
        if self._has_manager and not self._job.manager.lives():  # Serve has stopped both
            return False
        return not self._has_successor() and self._restart(died_at)

    def _has_started(self) -> bool:
        """Whether HAProxy answers. An earlier one that listens on the same sockets may answer each
        time in its place; one that cannot start has ended by then."""
        answering = answering_pid(self._job.socket)
        is_shared = answering is not None and time.monotonic() > self._started_at + SHARED_S
        return answering == self._haproxy.pid or is_shared

    def _has_successor(self) -> bool:
        """Whether a HAProxy that started later answers in its place."""
        answering = answering_pid(self._job.socket)
        later = None if answering is None else process(answering)
        return later is not None and later.started > self._haproxy.started

    def _settle(self) -> bool:
        is_managed = self._job.manager.lives()
        if self._restarted_at is not None:
            if not is_managed and self._has_manager:  # Serve was stopping it
                self._haproxy.kill()
                return False
            if is_managed and time.monotonic() - self._restarted_at > MANAGER_S:
                self._job.manager.kill()
                self._has_manager, self._restarted_at = False, None
                return True
        self._has_manager = is_managed
        return True

    def _restart(self, died_at: float) -> bool:
        if self._restarts == MAX_RESTARTS:
            self._job.manager.kill()
            return False
        self._restarts += 1
        # One before it may still listen: the signal to stop may have been lost.
        before = _replacing(self._job.binary, Path(self._job.config), self._job.socket)
        started = subprocess.Popen([self._job.binary, "-dS", *self._job.arguments, *before])
        self._haproxy = process(started.pid) or Process(started.pid, 0)
        while self._haproxy.lives():
            if answering_pid(self._job.socket) == self._haproxy.pid:
                self._note(died_at)
                self._started_at = time.monotonic()
                return True
            if self._has_successor() or not self._job.raylet.lives():
                self._haproxy.kill()  # two would share the port
                return False
            time.sleep(POLL_S / 5)
        return True

    def _stop_earlier(self) -> None:
        """Let each earlier HAProxy with this configuration finish its requests and end.

        A reload names the HAProxy that it replaces. It may have died, and its watcher may start
        another at the same moment, of which the reload does not know: they would share the port.
        """
        now = time.monotonic()
        if not self._has_answered or not self._rivals_at <= now < self._started_at + RIVALS_S:
            return
        self._rivals_at = now + RIVALS_POLL_S
        for pid in _running(self._job.binary, Path(self._job.config)):
            other = process(pid)
            if other is not None and other.order < self._haproxy.order:
                with suppress(OSError):
                    os.kill(pid, signal.SIGUSR1)

    def _note(self, died_at: float) -> None:
        self._restarted_at = time.monotonic()
        down_s = round(self._restarted_at - died_at, 2)
        with suppress(OSError), open(self._job.journal, "a", encoding="ascii") as file:
            file.write(json.dumps({"pid": self._haproxy.pid, "down_s": down_s}) + "\n")


def _replacing(binary: str, config: Path, admin: str) -> list[str]:
    """Return the arguments with which a start replaces what runs with this configuration."""
    running = [str(pid) for pid in _running(binary, config)]
    if not running:
        return []
    handed = [] if answering_pid(admin) is None else ["-x", admin]  # no connection is refused
    return ["-sf", *running, *handed]


def answering_pid(path: str) -> int | None:
    """Return the pid of the HAProxy that answers on this administration socket."""
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(SOCKET_TIMEOUT_S)
            connection.connect(path)
            connection.sendall(b"show info\n")
            with connection.makefile(encoding="utf-8", errors="replace") as lines:
                pids = [line.partition(":")[2] for line in lines if line.startswith("Pid:")]
        return int(pids[0])
    except (OSError, ValueError, IndexError):
        return None


if __name__ == "__main__":
    sys.path.append(str(Path(__file__).parents[2]))  # of the package; -I and -S leave it out
    main(sys.argv[1:])
