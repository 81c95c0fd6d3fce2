"""The options of `qwenfleet plan`; apart from the command, so that others start without it."""

from __future__ import annotations

import argparse
from typing import Final

from qwenfleet.cli.options import Commands
from qwenfleet.cluster.models.geometry import KVDtype
from qwenfleet.cluster.plan_errors import Change, Quantity, Wording
from qwenfleet.cluster.plan_report.files import Format
from qwenfleet.cluster.planner.request import Goal, Load, LongContext, Routing


def _change(change: Change) -> str:
    """With the option for a value that the short form of a layout does not show."""
    match change.quantity:
        case Quantity.CONTEXT:
            tokens = f"{change.value:,} tokens (--context {change.value})"
            return f"a context of {tokens} in {change.layout}"
        case Quantity.KV_DTYPE:
            return f"--kv-dtype {change.value} in {change.layout}"
    return str(change)


WORDING: Final = Wording(
    {
        Quantity.MODEL: "--model",
        Quantity.ACCELERATOR: "--accelerator",
        Quantity.NODES: "--nodes",
        Quantity.GPUS_PER_NODE: "--gpus-per-node",
        Quantity.LAYOUT: "--layout",
        Quantity.CONTEXT: "--context",
        Quantity.LONG_CONTEXT: "--long-context",
        Quantity.KV_DTYPE: "--kv-dtype",
        Quantity.CONCURRENCY: "--concurrency",
        Quantity.PROMPT_TOKENS: "--prompt-tokens",
        Quantity.OUTPUT_TOKENS: "--output-tokens",
    },
    "add --long-context yarn",
    _change,
)
"""How an error of the planner is written for this command's users."""


def add(commands: Commands) -> None:
    """Add `plan` to the command line."""
    parser = commands.add_parser(
        "plan",
        help="choose how a model is sharded over GPUs, and say why",
        description="Judge every split of a model over the GPUs of some machines, rank those that "
        "fit, and say which to take and why. Memory is computed from the model's shapes; speed is "
        "predicted from published measurements.",
    )
    parser.add_argument(
        "--model", help="Hugging Face id, short name or directory with a config.json"
    )
    _add_machines(parser)
    wishes = parser.add_argument_group("what is wanted")
    wishes.add_argument("--goal", choices=list(Goal), default=Goal.THROUGHPUT, type=Goal)
    wishes.add_argument("--slo", default="", metavar="ttft=2s,tpot=50ms", help="what users get")
    wishes.add_argument("--context", type=int, metavar="N", help="longest prompt plus output")
    wishes.add_argument(
        "--long-context",
        choices=list(LongContext),
        type=LongContext,
        help="how a context above the model's own is reached",
    )
    wishes.add_argument("--kv-dtype", choices=list(KVDtype), default=KVDtype.AUTO, type=KVDtype)
    wishes.add_argument("--layout", metavar="TP8+EP8", help="judge this one only")
    usual = Load()
    wishes.add_argument(
        "--concurrency", type=int, default=usual.concurrency, metavar="N",
        help=f"requests at once, over all engines (default {usual.concurrency})",
    )  # fmt: skip
    wishes.add_argument(
        "--prompt-tokens", type=int, metavar="N", help=f"default {usual.prompt_tokens}"
    )
    wishes.add_argument(
        "--output-tokens", type=int, metavar="N", help=f"default {usual.output_tokens}"
    )
    wishes.add_argument(
        "--routing", choices=list(Routing), default=Routing.UNIFORM, type=Routing,
        help="experts called as often (default), or as was measured of Qwen3-Coder-480B",
    )  # fmt: skip
    _add_answers(parser)
    parser.set_defaults(command=_run)


def _run(options: argparse.Namespace) -> int:
    from qwenfleet.cli import plan

    return plan.run(options)


def _add_answers(parser: argparse.ArgumentParser) -> None:
    answers = parser.add_argument_group("what is printed")
    answers.add_argument(
        "--output",
        nargs="+",
        metavar=("FORMAT", "FILE"),
        help=f"{', '.join(Format)}; to FILE, or in place of the table",
    )
    answers.add_argument(
        "--explain", metavar="LAYOUT", help="one GPU's memory: weights, KV cache, free"
    )
    answers.add_argument(
        "--html",
        metavar="FILE",
        help="a page to choose model, machines and context from, with the plan of each",
    )
    answers.add_argument(
        "--calibration",
        action="store_true",
        help="the speed model: its parameters, and how far off each held-out measurement was",
    )


def _add_machines(parser: argparse.ArgumentParser) -> None:
    machines = parser.add_argument_group("machines")
    machines.add_argument("--accelerator", help="H100, H200, B200, MI300X, MI325X, MI355X, A100")
    machines.add_argument("--nodes", type=int, metavar="N", help="default 1")
    machines.add_argument(
        "--gpus-per-node", type=int, metavar="N", help="default: of the usual server"
    )
    machines.add_argument(
        "--from-cluster", action="store_true", help="plan for the nodes of a cluster at hand"
    )
    where = machines.add_mutually_exclusive_group()
    where.add_argument("--address", help="of the Ray cluster; auto without it")
    where.add_argument(
        "--kube",
        nargs="?",
        const="",
        metavar="CONTEXT",
        help="of Kubernetes, by the kubeconfig's current context or this one",
    )
