"""`python -m qwenfleet.loadtest`: starts servers on this machine and benchmarks them."""

from __future__ import annotations

import argparse
import json
import math
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qwenfleet.cluster.errors import BenchmarkError, FleetError
from qwenfleet.loadtest import (
    dispatch_cost,
    metrics_cost,
    overhead,
    overhead_table,
    peers,
    scaling,
    servers,
    soak,
    tool_cost,
    tool_streams,
    wire_cost,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Return the exit status: 0, 1 after an error message, 2 for invalid arguments."""
    options = _parser().parse_args(arguments)
    try:
        options.command(options)
    except FleetError as error:
        print(f"loadtest: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"loadtest: {where}{error.strerror or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m qwenfleet.loadtest", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser(
        "overhead", help="compare vLLM's own server with a fleet of one engine: rates, TTFT, CPU"
    )
    command.add_argument("--json", metavar="FILE", type=Path, help="also write the cases to FILE")
    command.add_argument("--runs", type=_count, default=2, help="starts of each server (default 2)")
    command.add_argument(
        "--seconds", type=_seconds, default=5.0, help="how long each case runs (default 5)"
    )
    command.add_argument(
        "--peers",
        action="store_true",
        help="also run vLLM's server without our settings, and vllm-router, smg and ray.serve.llm "
        "if installed",
    )
    command.set_defaults(command=_overhead)
    command = commands.add_parser(
        "gateways", help="measure the throughput of 1, 2 and 4 gateways with scripted engines"
    )
    command.add_argument("--json", metavar="FILE", type=Path, help="also write the points to FILE")
    command.add_argument(
        "--seconds", type=_seconds, default=10.0, help="how long each fleet is loaded (default 10)"
    )
    command.set_defaults(command=_gateways)
    command = commands.add_parser("metrics", help="measure the CPU that metrics cost a gateway")
    command.add_argument(
        "--seconds", type=_seconds, default=10.0, help="how long the fleet is loaded (default 10)"
    )
    command.set_defaults(command=_metrics)
    command = commands.add_parser(
        "wire", help="measure the CPU of frames, and how long small ones wait for large ones"
    )
    command.set_defaults(command=_wire)
    command = commands.add_parser(
        "dispatch", help="measure what a frame costs a gateway while many requests wait or move"
    )
    command.set_defaults(command=_dispatch)
    command = commands.add_parser(
        "tools", help="measure what tool calls cost, with our parser and vLLM's (6 minutes)"
    )
    command.add_argument(
        "--seconds", type=_seconds, default=15.0, help="how long each fleet is loaded (default 15)"
    )
    command.set_defaults(command=_tools)
    _add_soak(commands)
    return parser


def _add_soak(commands: Any) -> None:
    command = commands.add_parser(
        "soak", help="stream at a steady rate while random parts of a fleet are killed"
    )
    command.add_argument(
        "--seconds", type=_seconds, default=1800.0, help="how long it runs (default 1800)"
    )
    command.add_argument(
        "--rate", type=_rate, default=50.0, help="streams that begin per second (default 50)"
    )
    command.add_argument(
        "--kill-every", type=_seconds, default=60.0, help="seconds between kills (default 60)"
    )
    command.set_defaults(command=_soak)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of runs, 1 or more")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return seconds


def _rate(text: str) -> float:
    try:
        return _seconds(text)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a rate above 0") from None


def _overhead(options: argparse.Namespace) -> None:
    _check_writable(options.json)
    others = [servers.vllm_as_it_comes, *peers.installed(_say)] if options.peers else []
    results = overhead.measure(
        [servers.vllm, servers.fleet],
        others=others,
        runs=options.runs,
        seconds=options.seconds,
        loads=overhead.LOADS,
        say=_say,
    )
    print(overhead_table.render(results))
    if options.json is not None:
        options.json.write_text(json.dumps([case.as_json() for case in results.cases], indent=2))


def _gateways(options: argparse.Namespace) -> None:
    _check_writable(options.json)
    points = scaling.measure(scaling.GATEWAYS, seconds=options.seconds, say=_say)
    print(scaling.render(points))
    if options.json is not None:
        options.json.write_text(json.dumps([point.as_json() for point in points], indent=2))


def _metrics(options: argparse.Namespace) -> None:
    print(metrics_cost.measure(seconds=options.seconds, say=_say))


def _wire(_: argparse.Namespace) -> None:
    print(wire_cost.measure())


def _dispatch(_: argparse.Namespace) -> None:
    print(dispatch_cost.measure())


def _tools(options: argparse.Namespace) -> None:
    streams = tool_streams.measure(seconds=options.seconds, say=_say)
    print(tool_streams.render(streams), tool_cost.measure(), sep="\n\n")


def _soak(options: argparse.Namespace) -> None:
    result = soak.measure(
        seconds=options.seconds,
        per_s=options.rate,
        kill_every_s=options.kill_every,
        say=_say,
    )
    print(soak.render(result))
    faults = soak.unexpected(result)
    if faults:
        raise BenchmarkError(
            f"{len(faults)} streams failed; the first one {faults[0]}",
            "Only the kill of a gateway or of HAProxy may end streams.",
        )


def _check_writable(file: Path | None) -> None:
    """Raise OSError for an unwritable file before the benchmark runs, not after."""
    if file is not None:
        file.open("a").close()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):  # so that the servers end too
        signal.signal(number, signal.default_int_handler)
    sys.exit(main())
