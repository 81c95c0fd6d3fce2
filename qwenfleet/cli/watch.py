"""`qwenfleet watch`: Prometheus with the chart's alerts, and `top`, for a fleet on this machine."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

import psutil

from qwenfleet.cli import top
from qwenfleet.cli.options import Commands, add_fleet
from qwenfleet.cluster.errors import ConfigError, MachineError
from qwenfleet.cluster.local import fleets, ports

if TYPE_CHECKING:
    from qwenfleet.cluster.live.screen import Find

RETENTION: Final = re.compile(r"(\d+(ms|[smhdwy]))+")


def add(commands: Commands) -> None:
    """Add `watch` to the command line."""
    parser = commands.add_parser(
        "watch",
        help="run Prometheus with the chart's alerts for the fleet on this machine, and show top",
        description="Start Prometheus on 127.0.0.1 with the chart's recording rules and alerts, "
        "scrape the fleet on this machine, and show `top`. Ctrl-C ends both. If the output is not "
        "a terminal, print problems and alerts as lines instead.",
    )
    add_fleet(parser)
    parser.add_argument(
        "--prometheus",
        metavar="PATH",
        default="prometheus",
        help="Prometheus binary (default: from PATH)",
    )
    parser.add_argument(
        "--listen",
        type=int,
        metavar="PORT",
        default=9090,
        help="port on which Prometheus listens (default 9090)",
    )
    parser.add_argument(
        "--retention",
        default="2h",
        metavar="TIME",
        help="how long Prometheus keeps data, such as 2h or 7d (default 2h)",
    )
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Watch the fleet on this machine."""
    from qwenfleet.deployments.operations import attach

    return watch(options, attach.find)


def watch(options: argparse.Namespace, find: Find) -> int:
    """Watch until Ctrl-C. Raises FleetNotFound without a fleet, MachineError without Prometheus."""
    # imported here because of rich, which other commands do not load
    from qwenfleet.cluster.alerts import rule_file
    from qwenfleet.cluster.live import prometheus, prometheus_files, screen
    from qwenfleet.cluster.live.table import Notice
    from qwenfleet.cluster.live.watcher import FleetFinder, Watcher, as_lines

    _check(options)
    path = prometheus.program(options.prometheus)
    running = find(options.port, options.fleet)
    with _directory() as directory:
        prometheus_files.write(directory, rule_file.rules())
        finder = FleetFinder(directory, find)
        finder.follow(running)
        port, standing = free_port(options.listen)
        with (
            screen.ending_quietly(),
            prometheus.running(path, directory, port, options.retention) as server,
        ):
            at = f"Prometheus answers at {server.url}; open it in a browser"
            if not sys.stdout.isatty():
                print("\n".join([*standing, at]), flush=True)
                watcher = Watcher(server)
                as_lines(
                    watcher, lambda: finder.find(options.port, options.fleet), options.interval
                )
            watcher = Watcher(server, tuple(Notice(t, is_bad=False) for t in [*standing, at]))
            options.url, options.once, options.json = None, False, False
            return top.show(options, finder.find, lambda: watcher.notices(time.time()))
    return 0


def _check(options: argparse.Namespace) -> None:
    """Raises ConfigError for values that Prometheus would reject."""
    if not RETENTION.fullmatch(options.retention) or not re.search("[1-9]", options.retention):
        raise ConfigError(
            f"--retention {options.retention!r} is not a duration", "Write it like 90m, 2h or 7d."
        )
    if not 1 <= options.listen <= 65535:
        raise ConfigError(f"--listen {options.listen} is not a port", "Use one from 1 to 65535.")


def free_port(wanted: int) -> tuple[int, list[str]]:
    """A free port, and a sentence if it is not `wanted`: Debian's package may run its own
    Prometheus on 9090."""
    from qwenfleet.cluster.live.prometheus import HOST

    try:
        ports.check_port(HOST, wanted)
    except MachineError as error:
        (port,) = ports.free_ports(1, HOST)
        return port, [f"{error.problem}; using port {port} for Prometheus"]
    return wanted, []


@contextmanager
def _directory() -> Iterator[Path]:
    """A temporary directory for this run, next to the fleets' files."""
    root = fleets.state_directory()
    sweep(root)
    path = Path(tempfile.mkdtemp(prefix=f"watch-{os.getpid()}-", dir=root))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def sweep(root: Path) -> None:
    """Remove directories of killed runs, and end the Prometheus processes that still use them."""
    from qwenfleet.cluster.live.prometheus import STOP_S

    for path in root.glob("watch-*-*"):
        pid = path.name.split("-")[1]
        if not pid.isdigit() or psutil.pid_exists(int(pid)):
            continue
        killed = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.cwd() == str(path):
                    process.kill()
                    killed.append(process)
        psutil.wait_procs(killed, timeout=STOP_S)  # it writes there until it ends
        shutil.rmtree(path, ignore_errors=True)
