"""Options of `qwenfleet plan`, separate from the command so that other commands start faster."""

from __future__ import annotations

import argparse

from qwenfleet.cli.options import Commands
from qwenfleet.cluster.models.geometry import KVDtype
from qwenfleet.cluster.plan_report.files import Format
from qwenfleet.cluster.planner.request import FleetLoad, Goal, LongContext, Routing


def add(commands: Commands) -> None:
    """Add `plan` to the command line."""
    parser = commands.add_parser(
        "plan",
        help="choose how to shard a model over GPUs, and say why",
        description="Check every way to split a model over the GPUs of the given machines, rank "
        "the layouts that fit, and say which to use and why. Memory is computed from the model's "
        "shapes; speed is predicted from published measurements.",
    )
    parser.add_argument(
        "--model", help="Hugging Face ID, short name, or directory with a config.json"
    )
    _add_machines(parser)
    _add_requirements(parser)
    _add_answers(parser)
    parser.set_defaults(command=_run)


def _run(options: argparse.Namespace) -> int:
    from qwenfleet.cli import plan

    return plan.run(options)


def _add_requirements(parser: argparse.ArgumentParser) -> None:
    wanted = parser.add_argument_group("requirements")
    wanted.add_argument(
        "--goal", choices=list(Goal), default=Goal.THROUGHPUT, type=Goal,
        help=f"what to optimize (default {Goal.THROUGHPUT})",
    )  # fmt: skip
    wanted.add_argument(
        "--slo", default="", metavar="ttft=2s,tpot=50ms",
        help="limits on the time to first token and the time per output token",
    )  # fmt: skip
    wanted.add_argument(
        "--context", type=int, metavar="N", help="longest prompt plus output, in tokens"
    )
    wanted.add_argument(
        "--long-context",
        choices=list(LongContext),
        type=LongContext,
        help="how to extend the context beyond the model's own",
    )
    wanted.add_argument(
        "--kv-dtype", choices=list(KVDtype), default=KVDtype.AUTO, type=KVDtype,
        help=f"data type of the KV cache (default {KVDtype.AUTO})",
    )  # fmt: skip
    wanted.add_argument("--layout", metavar="TP8+EP8", help="check only this layout")
    usual = FleetLoad()
    wanted.add_argument(
        "--concurrency", type=int, default=usual.concurrency, metavar="N",
        help=f"concurrent requests over all engines (default {usual.concurrency})",
    )  # fmt: skip
    wanted.add_argument(
        "--prompt-tokens", type=int, metavar="N",
        help=f"tokens of each prompt (default {usual.prompt_tokens})",
    )  # fmt: skip
    wanted.add_argument(
        "--output-tokens", type=int, metavar="N",
        help=f"tokens of each answer (default {usual.output_tokens})",
    )  # fmt: skip
    wanted.add_argument(
        "--routing", choices=list(Routing), default=Routing.UNIFORM, type=Routing,
        help="use of experts: uniform (default), or skewed as measured for Qwen3-Coder-480B",
    )  # fmt: skip


def _add_answers(parser: argparse.ArgumentParser) -> None:
    answers = parser.add_argument_group("output")
    answers.add_argument(
        "--output",
        nargs="+",
        metavar=("FORMAT", "FILE"),
        help=f"write one of {', '.join(Format)} to FILE, or print it instead of the table",
    )
    answers.add_argument(
        "--explain", metavar="LAYOUT", help="show the memory of one GPU: weights, KV cache, free"
    )
    answers.add_argument(
        "--html",
        metavar="FILE",
        help="write a page that shows the plan for each choice of model, machines and context",
    )
    answers.add_argument(
        "--calibration",
        action="store_true",
        help="show the speed model: its parameters, and its error on each held-out measurement",
    )


def _add_machines(parser: argparse.ArgumentParser) -> None:
    machines = parser.add_argument_group("machines")
    machines.add_argument(
        "--accelerator", help="one of H100, H200, B200, MI300X, MI325X, MI355X, A100-80GB"
    )
    machines.add_argument("--nodes", type=int, metavar="N", help="number of nodes (default 1)")
    machines.add_argument(
        "--gpus-per-node", type=int, metavar="N", help="default: as in the standard server"
    )
    machines.add_argument(
        "--from-cluster", action="store_true", help="plan for the nodes of a running cluster"
    )
    where = machines.add_mutually_exclusive_group()
    where.add_argument("--address", help="address of the Ray cluster (default auto)")
    where.add_argument(
        "--kube",
        nargs="?",
        const="",
        metavar="CONTEXT",
        help="a Kubernetes cluster instead: the kubeconfig's current context, or CONTEXT",
    )
