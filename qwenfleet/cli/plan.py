"""`qwenfleet plan`: read the options, plan, and print or write the result."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, TypeAlias

from pydantic import ValidationError
from rich.console import Console

from qwenfleet.cli import plan_wording
from qwenfleet.cluster.config.layout import Layout
from qwenfleet.cluster.hardware import discovery
from qwenfleet.cluster.hardware.accelerators import find_accelerator
from qwenfleet.cluster.hardware.discovery import ClusterMachines
from qwenfleet.cluster.hardware.machines import Machines
from qwenfleet.cluster.kube import query
from qwenfleet.cluster.models.catalog import KnownModel, find_model
from qwenfleet.cluster.models.geometry import KVDtype
from qwenfleet.cluster.plan_errors import NoLayoutFits, PlanError
from qwenfleet.cluster.plan_report import files, table
from qwenfleet.cluster.plan_report.files import Format
from qwenfleet.cluster.planner import settings, speed
from qwenfleet.cluster.planner.request import (
    FleetLoad,
    Goal,
    PlanRequest,
    Routing,
    Slo,
    check_context,
    parse_slo,
)
from qwenfleet.cluster.planner.search import judge, plan

RayNodes: TypeAlias = Callable[[str], Iterable[Mapping[str, Any]]]
"""Reads `ray.nodes()` of the cluster at an address."""
LAYOUT_HELP: Final = "See qwenfleet plan --help."
LEAST_COLUMNS: Final = 132
"""A narrower terminal folds the table's lines, which reads better than cut cells."""


def ray_nodes(address: str) -> Iterable[Mapping[str, Any]]:
    """Read `ray.nodes()` of the cluster at an address. Raises FleetNotFound."""
    from qwenfleet.deployments.operations import attach

    with attach.cluster(None, address):
        import ray

        nodes: list[Mapping[str, Any]] = ray.nodes()
        return nodes


def run(options: argparse.Namespace, ray_nodes: RayNodes = ray_nodes) -> int:
    """Plan for each kind of machine and return the exit status: 1 if --explain shows a layout that
    does not fit. Raises FleetError; a PlanError names command-line options."""
    try:
        return _run(options, ray_nodes)
    except PlanError as error:
        error.word(plan_wording.WORDING)
        raise


def _run(options: argparse.Namespace, ray_nodes: RayNodes) -> int:
    wanted = _output(options)
    _check_one_answer(options)
    if options.calibration:
        return _calibration(wanted)
    if options.html is not None:
        return _page(options)
    if not options.model:
        raise PlanError("no model is given", "Set --model.")
    model = find_model(options.model)
    found = _machines(options, ray_nodes)
    if wanted is not None and len(found.kinds) > 1:
        names = " and ".join(kind.name for kind in found.kinds)
        raise PlanError(
            f"the cluster has {names}, and --output writes one plan",
            "Choose one with --accelerator.",
        )
    requests = [
        PlanRequest(
            model=model,
            machines=kind,
            context_tokens=options.context,
            long_context=options.long_context,
            kv_dtype=options.kv_dtype,
            routing=options.routing,
            goal=options.goal,
            slo=parse_slo(options.slo) if options.slo else Slo(),
            load=_load(options, model),
            layout=_layout(options.layout),
        )
        for kind in found.kinds
    ]
    console = Console(soft_wrap=True)
    console.width = max(console.width, LEAST_COLUMNS)
    for skipped in found.skipped:
        print(f"qwenfleet: skipped: {skipped}", file=sys.stderr)
    if options.explain is not None:
        return max(_explain(request, options.explain, console) for request in requests)
    refusals = []
    for request in requests:
        try:
            _answer(request, wanted, console)
        except NoLayoutFits as error:
            refusals.append(error)
    if len(refusals) == len(requests):
        raise refusals[0]
    for refusal in refusals:
        refusal.word(plan_wording.WORDING)
        print(f"qwenfleet: {refusal}", file=sys.stderr)
    return 0


def _answer(request: PlanRequest, wanted: tuple[Format, str] | None, console: Console) -> None:
    found = plan(request, speed.speed_of)
    if wanted is None:
        caveats = speed.caveats(found)
        table.show(found, console, [*caveats, *settings.settings(found).notes])
        return
    form, file = wanted
    _write(files.write(found, form), file)
    for note in files.vllm_notes(found) if form is Format.VLLM_ARGS else []:
        print(f"qwenfleet: {note}", file=sys.stderr)
    if file != "-":
        print(f"{file}: {found.reason}")


def _check_one_answer(options: argparse.Namespace) -> None:
    """Reject options that each determine the whole output; only --calibration has formats."""
    asked = [name for name in ("calibration", "html", "explain") if getattr(options, name)]
    asked += ["output"] if options.output is not None and asked != ["calibration"] else []
    if len(asked) > 1:
        raise PlanError(
            " and ".join(f"--{name}" for name in asked) + " cannot be used together",
            "Use one at a time.",
        )


def _calibration(wanted: tuple[Format, str] | None) -> int:
    from qwenfleet.cluster.plan_report import calibration as calibration_tables
    from qwenfleet.cluster.speed import calibration

    if wanted is None:
        calibration_tables.show(calibration.fitted(), Console(soft_wrap=True))
        return 0
    form, file = wanted
    if form is not Format.JSON:
        raise PlanError(f"--calibration cannot be written as {form}", "Use --output json.")
    _write(json.dumps(calibration_tables.as_json(calibration.fitted()), indent=2) + "\n", file)
    return 0


def _page(options: argparse.Namespace) -> int:
    """Write the page; the given choices come first in its lists."""
    from qwenfleet.cluster.plan_report import page

    _check_page(options)
    usual = FleetLoad()
    grid = page.Grid(
        load=FleetLoad(
            options.concurrency,
            usual.prompt_tokens if options.prompt_tokens is None else options.prompt_tokens,
            usual.output_tokens if options.output_tokens is None else options.output_tokens,
        )
    )
    accelerator = (
        grid.accelerators[0]
        if options.accelerator is None
        else find_accelerator(options.accelerator)
    )
    model = None if options.model is None else find_model(options.model)
    if options.nodes is not None:
        Machines(accelerator, options.nodes)  # raises
    if options.context is not None:
        # The page itself reports a context that is too long for a model.
        check_context(grid.models[0], min(options.context, 1))
    wanted = grid.with_first(model, accelerator, options.nodes, options.context)
    Path(options.html).write_text(page.page(wanted), encoding="utf-8")
    print(f"{options.html}: open it in a browser; it needs no network")
    return 0


def _check_page(options: argparse.Namespace) -> None:
    """Raise PlanError for options that the page ignores: it plans standard servers for
    throughput."""
    unused = {
        "goal": options.goal is not Goal.THROUGHPUT,
        "slo": bool(options.slo),
        "kv-dtype": options.kv_dtype is not KVDtype.AUTO,
        "routing": options.routing is not Routing.UNIFORM,
        "layout": options.layout is not None,
        "long-context": options.long_context is not None,
        "gpus-per-node": options.gpus_per_node is not None,
        "from-cluster": options.from_cluster,
        "address": options.address is not None,
        "kube": options.kube is not None,
    }
    named = [f"--{name}" for name, is_given in unused.items() if is_given]
    if named:
        raise PlanError(
            f"--html cannot be used with {' and '.join(named)}: the page plans standard servers "
            "for throughput",
            f"Remove {'it' if len(named) == 1 else 'them'}, or remove --html.",
        )


def _write(text: str, file: str) -> None:
    """Write to a file, or to standard output for -."""
    if file == "-":
        sys.stdout.write(text)
    else:
        Path(file).write_text(text, encoding="utf-8")


def _explain(request: PlanRequest, name: str, console: Console) -> int:
    layout = _layout(name)
    assert layout is not None
    judgment, memory = judge(layout, replace(request, layout=layout))
    length = min(memory.kv_tokens, request.wanted_context_tokens)
    title = f"{request.model.short_name}, {layout.name} on {request.machines.name}"
    console.print(table.explain(title, memory, length))
    for remark in (*judgment.breaches, *judgment.notes):
        console.print(f"{remark.rule.value}: {remark.sentence}", highlight=False)
    return 0 if judgment.is_legal else 1


def _machines(options: argparse.Namespace, ray_nodes: RayNodes) -> ClusterMachines:
    if options.from_cluster or options.kube is not None or options.address is not None:
        if options.nodes is not None or options.gpus_per_node is not None:
            raise PlanError(
                "--nodes and --gpus-per-node cannot be used with --from-cluster, --address or "
                "--kube",
                "Remove them: both are read from the cluster.",
            )
        if options.kube is None:
            found = discovery.from_ray(ray_nodes(options.address or "auto"))
        else:
            found = discovery.from_kubernetes(kubernetes_nodes(options.kube or None))
        return found.only(options.accelerator)
    if options.accelerator is None:
        raise PlanError("no machines are given", "Set --accelerator, or --from-cluster.")
    accelerator = find_accelerator(options.accelerator)
    nodes = 1 if options.nodes is None else options.nodes
    usual = accelerator.gpus_per_node
    gpus = usual if options.gpus_per_node is None else options.gpus_per_node
    return ClusterMachines((Machines(accelerator, nodes, gpus),))


def kubernetes_nodes(context: str | None = None) -> list[dict[str, Any]]:
    """Read every node as the API server's JSON, with the kubeconfig's current or named context, or
    with the service account of this pod. Raises KubernetesError."""
    from qwenfleet.cluster.kube import client

    return client.connect(context).items(query.Query("nodes"))


def _load(options: argparse.Namespace, model: KnownModel) -> FleetLoad:
    return FleetLoad.within(
        options.context or model.geometry.max_context_tokens,
        concurrency=options.concurrency,
        prompt_tokens=options.prompt_tokens,
        output_tokens=options.output_tokens,
    )


def _layout(text: str | None) -> Layout | None:
    if text is None:
        return None
    try:
        return Layout.parse(text)
    except ValidationError as e:
        problem = "; ".join(error["msg"] for error in e.errors())
        raise PlanError(f"'{text}' is not a layout: {problem.rstrip('.')}", LAYOUT_HELP) from e
    except ValueError as e:
        raise PlanError(str(e), LAYOUT_HELP) from e


def _output(options: argparse.Namespace) -> tuple[Format, str] | None:
    """Return the format, and the file or - for standard output."""
    if options.output is None:
        return None
    name, *file = options.output
    if name not in list(Format) or len(file) > 1:
        raise PlanError(
            f"--output takes FORMAT [FILE], not '{' '.join(options.output)}'",
            f"Formats are {', '.join(Format)}.",
        )
    return Format(name), file[0] if file else "-"
