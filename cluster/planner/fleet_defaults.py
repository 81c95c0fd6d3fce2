"""Defaults that the planner and the model cards add to a fleet's configuration.

The planner refuses layouts that cannot work here, before Ray starts. Pure except for reading the
config.json of a model directory.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from qwenfleet.cluster.config.fleet import FleetConfig
from qwenfleet.cluster.config.model import ModelConfig, SamplingDefaults
from qwenfleet.cluster.errors import FleetError
from qwenfleet.cluster.hardware.accelerators import Accelerator, find_accelerator
from qwenfleet.cluster.hardware.machines import Machines
from qwenfleet.cluster.models.cards import defaults_for
from qwenfleet.cluster.models.catalog import KnownModel, find_model, find_published
from qwenfleet.cluster.models.config_json import read_geometry
from qwenfleet.cluster.models.geometry import KVDtype
from qwenfleet.cluster.plan_errors import PlanError
from qwenfleet.cluster.planner import config_keys
from qwenfleet.cluster.planner.plan import no_speed
from qwenfleet.cluster.planner.request import FleetLoad, PlanRequest
from qwenfleet.cluster.planner.search import plan
from qwenfleet.cluster.planner.settings import settings
from qwenfleet.cluster.planner.speed import speed_of
from qwenfleet.cluster.vllm_settings.defaults import BLOCK_TOKENS, UTILIZATION

CHANGES_THE_MODEL: Final = ("quantization", "hf_overrides", "hf_config_path", "load_format")
"""vLLM arguments that make weights or context differ from config.json. A model that sets one is not
planned."""


def completed(config: FleetConfig) -> FleetConfig:
    """Return the fleet with every model's missing settings filled by the planner and its card.

    Raises PlanError for a layout that the model cannot have.
    """
    return config.model_copy(update={"models": tuple(map(_completed, config.models))})


def _completed(model: ModelConfig) -> ModelConfig:
    model = _with_plan(model)
    card = defaults_for(model.resolved_source)
    sampling = {**card.sampling, **model.sampling.model_dump(exclude_none=True)}
    return model.model_copy(
        update={
            "tool_call_parser": model.tool_call_parser or card.tool_call_parser,
            "tool_strict_level": model.tool_strict_level or card.tool_strict_level,
            "max_model_len": model.max_model_len or card.max_model_len,
            "fill_in_the_middle": model.fill_in_the_middle or card.fill_in_the_middle,
            "sampling": SamplingDefaults.model_validate(sampling),
            "engine_args": {**card.engine_args, **model.engine_args},
        }
    )


def _with_plan(model: ModelConfig) -> ModelConfig:
    """Add layout and settings to each pool. All pools serve the context that the smallest one
    holds."""
    if not model.pools:
        return planned(model)
    found = [planned(pool) for pool in model.engine_pools]
    lengths = [pool.max_model_len for pool in found if pool.max_model_len is not None]
    pools = tuple(
        pool.model_copy(
            update={"layout": one.layout, "env": one.env, "engine_args": one.engine_args}
        )
        for pool, one in zip(model.pools, found, strict=True)
    )
    return model.model_copy(update={"pools": pools, "max_model_len": min(lengths, default=None)})


def planned(model: ModelConfig) -> ModelConfig:
    """Return one model, or one pool of it, with layout, context, `env` and `engine_args` planned.

    The model's own settings override those of the plan. A model is returned unchanged if it runs on
    CPUs, if the planner does not know its accelerator or architecture, or if its arguments change
    what is planned. Raises NoLayoutFits if its layout breaks a rule or if no layout on one standard
    server holds it, and PlanError for a directory that contradicts the published model it is named
    after. The errors name configuration keys.
    """
    accelerator = _known_accelerator(model)
    if accelerator is None or any(name in model.engine_args for name in CHANGES_THE_MODEL):
        return model
    known = _known_model(model.resolved_source)
    if known is None:
        return model
    try:
        request = _request(model, known, accelerator)
        found = plan(request, no_speed if model.layout else speed_of)
    except PlanError as error:
        error.word(config_keys.WORDING)
        raise
    usual = settings(found)
    return model.model_copy(
        update={
            "layout": found.choice.layout,
            "max_model_len": model.max_model_len or found.choice.max_model_len,
            "env": {**usual.env, **model.env},
            "engine_args": {**usual.engine_args, **model.engine_args},
        }
    )


def _request(model: ModelConfig, known: KnownModel, accelerator: Accelerator) -> PlanRequest:
    """Plan for as many nodes as the layout has, or for one standard server."""
    layout = model.layout
    machines = Machines(accelerator, 1, accelerator.gpus_per_node)
    if layout is not None:
        machines = Machines(accelerator, layout.nodes, layout.gpus_per_node)
    context, longest = model.max_model_len, known.geometry.max_context_tokens
    share = model.engine_args.get("gpu_memory_utilization", UTILIZATION)
    is_fp8 = str(model.engine_args.get("kv_cache_dtype", "")).startswith("fp8")
    return PlanRequest(
        model=known,
        machines=machines,
        context_tokens=context,
        kv_dtype=KVDtype.FP8 if is_fp8 else KVDtype.AUTO,
        load=FleetLoad.within(min(context or longest, longest)),
        layout=layout,
        utilization=float(share) if isinstance(share, int | float) else UTILIZATION,
        # The load is assumed, so a layout that the operator chose need not hold a request of it.
        least_tokens=None if layout is None else BLOCK_TOKENS,
    )


def _known_accelerator(model: ModelConfig) -> Accelerator | None:
    if model.accelerator is None or model.engine != "vllm":
        return None
    try:
        return find_accelerator(model.accelerator)
    except PlanError:
        return None


def _known_model(source: str) -> KnownModel | None:
    directory = Path(source).expanduser()
    if not directory.is_dir():
        return find_published(source)
    try:
        read_geometry(directory)
    except FleetError:  # other checks report what is wrong with the directory
        return None
    return find_model(str(directory))
