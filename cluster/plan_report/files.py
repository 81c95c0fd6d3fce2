"""A plan for other programs: a fleet, helm values, vLLM arguments, or JSON. Pure."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict
from enum import StrEnum
from typing import Any, Final

import yaml
from pydantic import JsonValue

from qwenfleet.cluster.config.layout import Layout
from qwenfleet.cluster.planner.plan import Candidate, Plan, RefusedLayout
from qwenfleet.cluster.planner.settings import settings

HEADER: Final = "# Written by `qwenfleet plan`: {reason}\n"


class Format(StrEnum):
    """Formats of `--output`."""

    FLEET = "fleet.yaml"
    """Fleet for `qwenfleet serve --config`."""
    VALUES = "values.yaml"
    """The same under `fleet:`, for the helm chart."""
    VLLM_ARGS = "vllm-args"
    """Arguments of `vllm serve`, on one line."""
    JSON = "json"
    """Everything: candidates, refused layouts, reason."""


def write(plan: Plan, wanted: Format) -> str:
    """Format the plan's choice, or for JSON the whole plan, ending in a newline."""
    if wanted is Format.JSON:
        return json.dumps(as_json(plan), indent=2) + "\n"
    if wanted is Format.VLLM_ARGS:
        return shlex.join(vllm_args(plan)) + "\n"
    tree = fleet(plan)
    tree = {"fleet": tree} if wanted is Format.VALUES else tree
    head = HEADER.format(reason=plan.reason)
    return head + yaml.safe_dump(tree, sort_keys=False, width=100)


def fleet(plan: Plan) -> dict[str, Any]:
    """Build the tree of a `FleetConfig` that serves the choice."""
    model, choice, found = plan.request.model, plan.choice, settings(plan)
    parser = {"tool_call_parser": found.tool_call_parser} if found.tool_call_parser else {}
    env = {"env": dict(found.env)} if found.env else {}
    return {
        "models": [
            {
                "id": model.short_name,
                "source": model.name,
                "accelerator": plan.request.machines.accelerator.ray_name,
                "replicas": {"min": choice.engines},
                "layout": layout_tree(choice.layout),
                "max_model_len": choice.max_model_len,
                **parser,
                "engine_args": dict(found.engine_args),
                **env,
            }
        ]
    }


def layout_tree(layout: Layout) -> dict[str, Any]:
    """Return every non-default key, and always the tensor parallel size."""
    tree = layout.model_dump(mode="json", exclude_defaults=True)
    return {"tensor_parallel_size": layout.tensor_parallel_size, **tree}


def vllm_args(plan: Plan) -> list[str]:
    """Arguments of `vllm serve` for one engine; for several nodes, those of the first node."""
    layout, model = plan.choice.layout, plan.request.model
    wanted = settings(plan)
    parser = wanted.tool_call_parser
    pairs: list[tuple[str, JsonValue]] = [
        ("tensor-parallel-size", layout.tensor_parallel_size),
        ("pipeline-parallel-size", layout.pipeline_parallel_size),
        ("data-parallel-size", layout.data_parallel_size),
        ("nnodes", layout.nodes),
    ]
    sizes = [(name, value) for name, value in pairs if value != 1]
    sizes += [("max-model-len", plan.choice.max_model_len)]
    for name, setting in wanted.engine_args.items():
        text = json.dumps(setting) if isinstance(setting, dict) else setting
        sizes.append((name.replace("_", "-"), text))
    found = [model.name]
    for name, value in sizes:
        found += [f"--{name}", str(value)]
    if layout.expert_parallel:
        found.append("--enable-expert-parallel")
    if parser is not None:
        found += ["--enable-auto-tool-choice", "--tool-call-parser", parser]
    return found


def vllm_notes(plan: Plan) -> list[str]:
    """Instructions that `vllm_args` cannot express, as sentences without periods."""
    env, nodes = settings(plan).env, plan.choice.layout.nodes
    notes = []
    if env:
        pairs = " ".join(f"{name}={value}" for name, value in env.items())
        notes.append(f"set this in vLLM's environment: {pairs}")
    if nodes > 1:
        notes.append(
            f"add --master-addr with the first node's address on all {nodes} nodes, and --headless "
            "with --node-rank 1, 2 and so on on the other nodes"
        )
    return notes


def as_json(plan: Plan) -> dict[str, Any]:
    """Convert the whole plan to JSON-compatible values."""
    request = plan.request
    machines = request.machines
    return {
        "model": request.model.name,
        "machines": {
            "accelerator": machines.accelerator.name,
            "nodes": machines.nodes,
            "gpus_per_node": machines.gpus_per_node,
        },
        "goal": request.goal.value,
        "load": asdict(request.load),
        "routing": request.routing.value,
        "slo": asdict(request.slo),
        "choice": plan.choice.layout.name,
        "reason": plan.reason,
        "warnings": list(plan.warnings),
        "settings": {
            "engine_args": dict(settings(plan).engine_args),
            "env": dict(settings(plan).env),
            "notes": list(settings(plan).notes),
        },
        "candidates": [_candidate(one) for one in plan.candidates],
        "refused": [_refused(one) for one in plan.refused],
    }


def _candidate(one: Candidate) -> dict[str, Any]:
    found: dict[str, Any] = {
        "layout": one.layout.name,
        "engines": one.engines,
        "gpus": one.num_gpus,
        "weight_bytes_per_gpu": one.memory.weight_bytes,
        "kv_tokens": one.kv_tokens,
        "max_model_len": one.max_model_len,
        "requests_at_once": one.engines * one.concurrency,
        "max_num_seqs": one.max_num_seqs,
        "slo": one.slo.name.lower(),
        "notes": [
            {"rule": n.rule.value, "sentence": n.sentence, "is_discouraged": n.is_discouraged}
            for n in one.judgment.notes
        ],
    }
    total = one.output_tokens_per_s
    if one.speed is not None and total is not None:
        ranges = {
            "ttft_s": one.speed.ttft_s,
            "tpot_s": one.speed.tpot_s,
            "output_tokens_per_s": total,
        }
        found["predicted"] = {name: [value.low, value.high] for name, value in ranges.items()}
    return found


def _refused(one: RefusedLayout) -> dict[str, Any]:
    breaches = [{"rule": b.rule.value, "sentence": b.sentence} for b in one.breaches]
    return {"layout": one.layout.name, "breaches": breaches}
