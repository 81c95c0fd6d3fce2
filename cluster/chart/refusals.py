"""What the chart's templates need to refuse every fleet that `FleetConfig` or the planner refuses.

`generate` writes it as `files/refusals.json`; `templates/_refusals.tpl` reads it. Values that the
types refuse are in `values.schema.json`; this is the rest: arguments of vLLM by name, the shapes
and the memory of layouts, and the memory of a CPU engine and of open requests.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Final

from qwenfleet.cluster.config import vllm_arguments
from qwenfleet.cluster.config.fleet import GatewayConfig
from qwenfleet.cluster.config.layout import Layout
from qwenfleet.cluster.config.model import FRONT_END_ARGS
from qwenfleet.cluster.hardware.accelerators import ACCELERATORS, H100, Accelerator, plain_name
from qwenfleet.cluster.local import memory, request_memory
from qwenfleet.cluster.models import smollm2
from qwenfleet.cluster.models.catalog import CATALOG, KnownModel
from qwenfleet.cluster.models.geometry import BF16_BYTES, Geometry
from qwenfleet.cluster.planner.fleet_defaults import CHANGES_THE_MODEL
from qwenfleet.cluster.planner.memory import (
    RESERVE_BYTES,
    activation_bytes,
    kv_heads_per_rank,
    pipeline_layers,
    stage_weight_bytes,
)
from qwenfleet.cluster.planner.rules import Rule, judge_shape
from qwenfleet.cluster.vllm_settings.defaults import BLOCK_TOKENS, UTILIZATION
from qwenfleet.cluster.vllm_settings.long_context import DUAL_CHUNK

MOST_GPUS: Final = 32
"""GPUs of the largest engine in the table: `planner.layouts` tries four nodes of eight."""

ANY: Final = H100
"""Shapes do not depend on the accelerator, except for the type of the weights."""


def refusals() -> dict[str, Any]:
    """Return the content of `files/refusals.json`."""
    return {
        "engineArgs": engine_args(),
        "planner": {
            "utilization": UTILIZATION,
            "blockTokens": BLOCK_TOKENS,
            "mostGpus": MOST_GPUS,
            "unplannedArgs": sorted(CHANGES_THE_MODEL),
            "dualChunk": DUAL_CHUNK,
        },
        "accelerators": {
            plain_name(name): _accelerator(one) for one in ACCELERATORS for name in one.names
        },
        "names": {name: model.name for model in CATALOG for name in model.lower_names},
        "models": {model.name: _model(model) for model in CATALOG},
        "shapes": {_shape(model): _sizes(model.geometry) for model in CATALOG},
        "cpu": {
            "weightsFactor": memory.WEIGHTS_FACTOR,
            "processBytes": memory.PROCESS_BYTES,
            "rayBytes": memory.RAY_BYTES,
            "leastKvGib": memory.LEAST_KV_GIB,
            "weightBytes": {smollm2.NAME: smollm2.WEIGHT_BYTES},
        },
        "requests": {
            "openBodyBytes": GatewayConfig().admission.max_open_body_bytes,
            "maxBodyBytes": GatewayConfig().max_body_bytes,
            "requests": GatewayConfig().max_ongoing_requests,
            "bytesPerToken": request_memory.BYTES_PER_TOKEN,
            "textCopies": request_memory.TEXT_COPIES,
            "tokenBytes": request_memory.TOKEN_BYTES,
            "gatewayBytes": memory.GATEWAY_BYTES,
            "grammarProcessBytes": request_memory.GRAMMAR_PROCESS_BYTES,
            "grammarRoom": request_memory.GRAMMAR_ROOM,
            "grammarMib": GatewayConfig().grammar.max_compiled_mib,
            "grammarWorkers": GatewayConfig().grammar.workers,
            "contexts": {smollm2.NAME: smollm2.CONTEXT_TOKENS},
        },
    }


def engine_args() -> dict[str, Any]:
    """Return the names that `engine_args` may have, and a sentence for each that it may not."""
    known = vllm_arguments.GATEWAY | vllm_arguments.BOTH | vllm_arguments.ENGINE
    refused = {}
    for name in sorted({*vllm_arguments.OWNED, *vllm_arguments.REFUSED}):
        found = vllm_arguments.problem_of(name)
        assert found is not None
        refused[name] = f"{found[0]}. {found[1]}"
    return {
        "known": sorted(known),
        "refused": refused,
        "perModel": sorted(set(FRONT_END_ARGS) - vllm_arguments.PER_POOL),
    }


def _accelerator(accelerator: Accelerator) -> dict[str, Any]:
    unusable = {
        model.geometry.quantization.method.value: remark.sentence
        for model in CATALOG
        if model.geometry.quantization is not None
        for remark in judge_shape(model.geometry, Layout(), accelerator).breaches
        if remark.rule is Rule.QUANTIZATION
    }
    return {
        "name": accelerator.name,
        "memoryBytes": accelerator.memory_bytes,
        "unusable": unusable,
    }


def _model(model: KnownModel) -> dict[str, Any]:
    geometry = model.geometry
    quantization = geometry.quantization
    return {
        "name": model.name,
        "context": geometry.max_context_tokens,
        "native": geometry.max_position_embeddings,
        "ropeTheta": geometry.rope_theta,
        "quantization": quantization.method.value if quantization else "",
        "layers": geometry.num_layers,
        "shape": _shape(model),
    }


def _shape(model: KnownModel) -> str:
    """Return the name of the first model whose layouts are the same."""
    mine = replace(model.geometry, intermediate_size=0)  # of layers that have no experts
    same = (one.short_name for one in CATALOG if replace(one.geometry, intermediate_size=0) == mine)
    return next(same)


def _sizes(geometry: Geometry) -> dict[str, Any]:
    """Return what depends on the sizes of a layout."""
    return {**_breaches(geometry), "layouts": dict(_layouts(geometry))}


def _breaches(geometry: Geometry) -> dict[str, dict[str, str]]:
    """Return why vLLM refuses some sizes: of TP, and of TP x DP with and without whole experts."""
    found: dict[str, dict[str, str]] = {"tp": {}, "experts": {}, "split": {}}
    for ranks in range(1, MOST_GPUS + 1):
        layouts = {
            "tp": Layout(tensor_parallel_size=ranks, expert_parallel=True),
            "experts": Layout(data_parallel_size=ranks, expert_parallel=True),
            "split": Layout(data_parallel_size=ranks),
        }
        for axis, layout in layouts.items():
            for remark in judge_shape(geometry, layout, ANY).breaches:
                if remark.rule is Rule.QUANTIZATION:
                    continue
                if axis != "tp" or remark.rule is not Rule.EXPERTS:
                    found[axis].setdefault(str(ranks), remark.sentence)
    return found


def _layouts(geometry: Geometry) -> Iterator[tuple[str, list[list[int]]]]:
    """Yield each layout that vLLM loads, with what its GPUs hold besides the KV cache and the bytes
    of a token, in each kind of pipeline stage."""
    sizes = range(1, MOST_GPUS + 1)
    for tp, pp, dp in itertools.product(sizes, sizes, sizes):
        if tp * pp * dp > MOST_GPUS:
            continue
        for is_whole in (False, True):
            layout = Layout(
                tensor_parallel_size=tp,
                pipeline_parallel_size=pp,
                data_parallel_size=dp,
                expert_parallel=is_whole,
            )
            breaches = judge_shape(geometry, layout, ANY).breaches
            if not {one.rule for one in breaches} - {Rule.QUANTIZATION}:
                yield f"{tp}-{pp}-{dp}{'-whole' if is_whole else ''}", _stages(geometry, layout)


def _stages(geometry: Geometry, layout: Layout) -> list[list[int]]:
    reserve = max(RESERVE_BYTES, activation_bytes(geometry, layout))
    of_layer = 2 * kv_heads_per_rank(geometry, layout) * geometry.head_dim * BF16_BYTES
    layers = pipeline_layers(geometry.num_layers, layout.pipeline_parallel_size)
    found = {
        (stage_weight_bytes(geometry, layout, stage) + reserve, max(1, count) * of_layer)
        for stage, count in enumerate(layers)
    }
    return sorted(map(list, found))
