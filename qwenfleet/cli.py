"""The `qwenfleet` command: the one place that knows all four folders."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from qwenfleet import completion
from qwenfleet.cluster import (
    config_file,
    keys_command,
    kube_options,
    plan_options,
    run_file,
    top_options,
)
from qwenfleet.cluster.config import FleetConfig
from qwenfleet.cluster.errors import FleetError

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the result is the exit status, and a failure is one sentence on stderr."""
    options = _parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], int | None] = options.command
    try:
        return command(options) or 0
    except FleetError as error:
        print(f"qwenfleet: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader has left, as in `qwenfleet status | head`; the interpreter's own flush must not
        # complain of it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"qwenfleet: {where}{error.strerror or error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="qwenfleet", description="Serve the Qwen3-Coder family over a Ray cluster."
    )
    parser.add_argument("--version", action=_Version, help="print name and version")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    serve = commands.add_parser("serve", help="run a fleet on this machine until Ctrl-C")
    models = serve.add_mutually_exclusive_group()
    models.add_argument("--config", metavar="FILE", help="the fleet, as YAML")
    models.add_argument(
        "--model", metavar="ID", help="one embedded model, Hugging Face id or directory"
    )
    serve.add_argument("--engines", type=int, metavar="N", help="engines of each model")
    serve.add_argument("--gateways", type=int, metavar="N", help="gateway processes")
    serve.add_argument(
        "--host",
        help="address to answer HTTP on (default 127.0.0.1; one that other machines reach needs "
        "`auth` in the file)",
    )
    serve.add_argument("--port", type=int, help="port to answer HTTP on (default 8000)")
    serve.add_argument(
        "--timings", action="store_true", help="say what the start spent its time on"
    )
    serve.set_defaults(command=_serve)
    kube_options.add_status(commands).set_defaults(command=_status)
    top_options.add_top(commands).set_defaults(command=_top)
    top_options.add_watch(commands).set_defaults(command=_watch)
    _add_drain(commands)
    _add_doctor(commands)
    plan_options.add(commands).set_defaults(command=_plan)
    keys_command.add(commands)
    shell = commands.add_parser(
        "completion",
        help="print a shell's completion script",
        description='Print the completion script of a shell. For bash: eval "$(qwenfleet '
        'completion bash)", also as a line of ~/.bashrc.',
    )
    shell.add_argument("shell", choices=completion.SHELLS)
    shell.set_defaults(command=lambda options: print(completion.script(parser, options.shell)))
    return parser


class _Version(argparse.Action):
    """Reads the version only when it is asked for."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from qwenfleet.cluster import packages

        print(f"{parser.prog} {packages.own_version()}")
        parser.exit()


def _add_drain(commands: Commands) -> None:
    drain = commands.add_parser(
        "drain", help="move an engine's streams to others, then replace the engine"
    )
    kube_options.add_drain(drain)
    drain.add_argument(
        "--deadline",
        type=_seconds,
        default=60.0,
        metavar="SECONDS",
        help="how long streams have to leave before they are cut, and go on when they find an "
        "engine (default 60)",
    )
    drain.add_argument("--force", action="store_true", help="even the last engine of its model")
    drain.add_argument("--port", type=int, help="of the fleet at this port, when several run")
    drain.set_defaults(command=_drain)


def _add_doctor(commands: Commands) -> None:
    doctor = commands.add_parser(
        "doctor",
        help="say what is wrong or surprising here, and the way out",
        description="Say what is wrong or surprising on this machine, or with an option on every "
        "node of a cluster, each with the way out. The exit status is 1 when there is a problem, "
        "which is something that stops or breaks `serve`, and 0 otherwise.",
    )
    doctor.add_argument("--json", action="store_true", help="as JSON")
    doctor.add_argument("--verbose", action="store_true", help="also what is as it should be")
    places = doctor.add_mutually_exclusive_group()
    places.add_argument(
        "--address",
        help="of a Ray cluster that this machine is a node of; `auto` finds the one that runs here",
    )
    places.add_argument("--port", type=int, help="the cluster of the fleet at this port")
    doctor.set_defaults(command=_doctor)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return seconds


def _serve(options: argparse.Namespace) -> None:
    config = config_file.load(options.config) if options.config else FleetConfig()
    config = config_file.with_overrides(
        config,
        model=options.model,
        engines=options.engines,
        gateways=options.gateways,
        host=options.host,
        port=options.port,
    )
    _run(config, wants_timings=options.timings)


def _run(config: FleetConfig, *, wants_timings: bool) -> None:
    """Ray reads its environment when it is imported, so nothing that needs it comes before that."""
    from qwenfleet.deployments.environment import ray_environment
    from qwenfleet.deployments.haproxy import write_launcher
    from qwenfleet.deployments.processes import remove_files, sweep

    sweep()
    token_path = run_file.state_directory() / f"{os.getpid()}.token"
    haproxy = token_path.with_suffix(".haproxy")
    try:
        write_launcher(haproxy)
        os.environ.update(ray_environment(config, token_path, haproxy))
        from qwenfleet.deployments import launch
        from qwenfleet.deployments.progress import Stages

        began_at = run_file.own_start()
        stages = Stages(age_s=time.time() - began_at)
        stages.clock.begin("importing Ray", at=began_at)
        launch.write_token(token_path)
        launch.stop_on_signals()
        launch.check(config, stages)
        launch.serve(config, stages, token_path, wants_timings=wants_timings)
    finally:
        remove_files(token_path)


def _status(options: argparse.Namespace) -> None:
    kube_options.check_status(options)
    if options.kube:
        from qwenfleet.cluster import kube_command

        kube_command.run(options)
        return
    from qwenfleet.deployments import attach, status

    answer = status.read(attach.find(options.port))
    print(json.dumps(answer.as_json(), indent=2) if options.json else status.table(answer))


def _top(options: argparse.Namespace) -> int:
    from qwenfleet.cluster import top_command
    from qwenfleet.deployments import attach

    return top_command.run(options, attach.find)


def _watch(options: argparse.Namespace) -> int:
    from qwenfleet.cluster import watch_command
    from qwenfleet.deployments import attach

    return watch_command.run(options, attach.find)


def _drain(options: argparse.Namespace) -> None:
    kube_options.check_drain(options)
    if options.node is not None:
        from qwenfleet.deployments import node_drain

        node_drain.run(options, lambda text: print(text, flush=True))
        return
    from qwenfleet.deployments import attach, drain

    drain.drain(
        attach.find(options.port),
        options.engine,
        deadline_s=options.deadline,
        is_forced=options.force,
        say=lambda text: print(text, flush=True),
    )


def _doctor(options: argparse.Namespace) -> int:
    from qwenfleet.cluster import finding

    if options.port is None and options.address is None:
        from qwenfleet.cluster import doctor

        findings = doctor.judge(doctor.gather())
    else:
        from qwenfleet.deployments import checkup

        findings = checkup.run(options.port, options.address)
    if options.json:
        print(json.dumps(finding.as_json(findings), indent=2))
    else:
        print(finding.text(findings, is_verbose=options.verbose))
    return 1 if finding.problems(findings) else 0


def _plan(options: argparse.Namespace) -> int:
    from qwenfleet.cluster import plan_command

    return plan_command.run(options, _ray_nodes)


def _ray_nodes(address: str) -> list[Mapping[str, Any]]:
    from qwenfleet.deployments import attach

    with attach.cluster(None, address):
        import ray

        nodes: list[Mapping[str, Any]] = ray.nodes()
        return nodes


if __name__ == "__main__":
    sys.exit(main())
