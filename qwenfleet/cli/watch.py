"""`qwenfleet watch`: its options, and Prometheus with the chart's alerts next to a fleet."""

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
        help="run Prometheus with the alerts beside the fleet of this machine, and top",
        description="Start Prometheus on 127.0.0.1 with the chart's recording rules and alerts, "
        "let it scrape the fleet that runs here, and show `top` until Ctrl-C ends both. Where the "
        "output is no terminal, problems and alerts are lines.",
    )
    add_fleet(parser)
    parser.add_argument(
        "--prometheus", metavar="PATH", default="prometheus", help="the program (default: of PATH)"
    )
    parser.add_argument(
        "--listen",
        type=int,
        metavar="PORT",
        default=9090,
        help="port of Prometheus itself (default 9090)",
    )
    parser.add_argument(
        "--retention",
        default="2h",
        metavar="TIME",
        help="how long it keeps data, such as 2h or 7d (default 2h)",
    )
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Watch the fleet that runs here."""
    from qwenfleet.deployments.operations import attach

    return watch(options, attach.find)


def watch(options: argparse.Namespace, find: Find) -> int:
    """Watch until Ctrl-C. Raises FleetNotFound without a fleet, MachineError without Prometheus."""
    # With rich, which other commands start without.
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
    """Raises ConfigError for what Prometheus would stumble over."""
    if not RETENTION.fullmatch(options.retention) or not re.search("[1-9]", options.retention):
        raise ConfigError(
            f"--retention {options.retention!r} is no time", "Write it like 90m, 2h or 7d."
        )
    if not 1 <= options.listen <= 65535:
        raise ConfigError(f"--listen {options.listen} is no port", "Take one from 1 to 65535.")


def free_port(wanted: int) -> tuple[int, list[str]]:
    """With a sentence when it is another than `wanted`: Debian's package may run a Prometheus
    of its own at 9090."""
    from qwenfleet.cluster.live.prometheus import HOST

    try:
        ports.check_port(HOST, wanted)
    except MachineError as error:
        (port,) = ports.free_ports(1, HOST)
        return port, [f"{error.problem}; taking {port} for Prometheus"]
    return wanted, []


@contextmanager
def _directory() -> Iterator[Path]:
    """Beside the fleets' own files, for this run only."""
    root = fleets.state_directory()
    sweep(root)
    path = Path(tempfile.mkdtemp(prefix=f"watch-{os.getpid()}-", dir=root))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def sweep(root: Path) -> None:
    """End and remove what a run left that was killed before it could."""
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
        psutil.wait_procs(killed, timeout=STOP_S)  # it writes there until it is gone
        shutil.rmtree(path, ignore_errors=True)
