"""The chart and the fleet refuse the same configurations, from a table and generated."""

from __future__ import annotations

import copy

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from qwenfleet.cluster.config.fleet import FleetConfig
from qwenfleet.cluster.errors import FleetError
from qwenfleet.cluster.planner.fleet_checks import check_fleet
from qwenfleet.cluster.planner.fleet_defaults import completed

pytestmark = pytest.mark.chart

FP8 = "Qwen/Qwen3-Coder-480B-A35B-Instruct-FP8"
BF16 = "Qwen/Qwen3-Coder-480B-A35B-Instruct"
SMALL = "Qwen/Qwen3-Coder-30B-A3B-Instruct"
EIGHT = {"tensor_parallel_size": 8, "expert_parallel": True}
OF_PODS = (
    "no layout, so the number of GPUs per pod is unknown",
    "but a node has",
    "would span nodes",
    "into whole quantization blocks",
)
"""What only the chart refuses: `serve` plans a layout, and takes one that loads but is slow."""


def fleet(*models, **others):
    return {"models": list(models), "gateway": {"host": "0.0.0.0"}, **others}


def plain(**more):
    return fleet({"id": "a", **more})


def on_h100(source=FP8, layout=EIGHT, **more):
    return plain(source=source, accelerator="H100", layout=layout, **more)


def pools(*found, **more):
    return plain(
        source=FP8, pools=[{"name": f"p{n}", **one} for n, one in enumerate(found)], **more
    )


def stretched(**overrides):
    return on_h100(engine_args={"hf_overrides": overrides}, max_model_len=300_000)


YARN = {
    "rope_type": "yarn",
    "factor": 2.0,
    "rope_theta": 10000000,
    "original_max_position_embeddings": 262144,
}
REFUSED = {
    "max_model_len in engine_args": plain(engine_args={"max_model_len": 1}),
    "tensor_parallel_size in engine_args": plain(engine_args={"tensor_parallel_size": 2}),
    "rope_scaling": plain(engine_args={"rope_scaling": {}}),
    "an argument of vLLM's own server": plain(engine_args={"port": 1}),
    "an unknown argument": plain(engine_args={"max_num_seq": 2}),
    "an argument of a pool": pools({"engine_args": {"uds": "x"}}),
    "a front end's argument in a pool": pools({"engine_args": {"max_logprobs": 5}}),
    "a model id twice": fleet({"id": "a"}, {"id": "b"}, {"id": "a"}),
    "a script without the scripted engine": plain(script={"num_tokens": 3}),
    "max below min": plain(replicas={"min": 2, "max": 1}),
    "max above min": plain(replicas={"min": 1, "max": 2}),
    "max above min in a pool": pools({"replicas": {"max": 2}}),
    "nodes that do not divide": plain(layout={"tensor_parallel_size": 2, "nodes": 3}),
    "nodes that do not divide in a pool": pools({"layout": {"nodes": 2}}),
    "load balancing without experts": plain(layout={"expert_load_balancing": True}),
    "an accelerator with pools": pools({}, accelerator="H100"),
    "a layout with pools": pools({}, layout={}),
    "replicas with pools": pools({}, replicas={"min": 2}),
    "replicas with pools, spelled out": pools({}, replicas={"min": 1, "max": 1}),
    "two pools of one name": plain(pools=[{"name": "x"}, {"name": "y"}, {"name": "x"}]),
    "a short lease": plain() | {"wire": {"lease_s": 1.4}},
    "a slow heartbeat": plain() | {"wire": {"heartbeat_s": 2}},
    "480B with TP4 on H100": on_h100(layout={"tensor_parallel_size": 4}),
    "480B BF16 on eight H100": on_h100(source=BF16),
    "480B by its short name": on_h100("qwen3-coder-480b-fp8", {"tensor_parallel_size": 4}),
    "480B in a pool": pools({"accelerator": "H100", "layout": {"tensor_parallel_size": 4}}),
    "TP5": on_h100(source=SMALL, layout={"tensor_parallel_size": 5}),
    "more stages than layers": on_h100(SMALL, {"pipeline_parallel_size": 49, "nodes": 7}),
    "experts that do not divide": on_h100(
        SMALL, {"tensor_parallel_size": 2, "data_parallel_size": 3, "expert_parallel": True}
    ),
    "NVFP4 on MI300X": plain(
        source="nvidia/Qwen3-Coder-480B-A35B-Instruct-NVFP4",
        accelerator="AMD-Instinct-MI300X-OAM",
        layout=EIGHT,
    ),
    "a context that memory cannot hold": on_h100(
        SMALL, {"tensor_parallel_size": 1}, max_model_len=262_144
    ),
    "a small share of memory": on_h100(engine_args={"gpu_memory_utilization": 0.5}),
    "a share above all": on_h100(engine_args={"gpu_memory_utilization": 1.5}),
    "a context above the model's": on_h100(max_model_len=262_145),
    "a context of one token": on_h100(max_model_len=1),
    "rope_scaling in hf_overrides": stretched(rope_scaling=YARN),
    "rope_parameters without theta": stretched(rope_parameters={"rope_type": "yarn", "factor": 2}),
    "dual chunk attention": stretched(dual_chunk_attention_config={"x": 1}),
    "too little YaRN": stretched(rope_parameters=YARN | {"factor": 1.1}),
    "a wrong type": plain(max_model_len="8k"),
    "an unknown key": plain(max_len=8),
    "a number out of bounds": plain(kv_cache_gib=0),
    "an id that ends in a space": fleet({"id": "a "}),
}
ACCEPTED = {
    "the least": plain(),
    "engine arguments": plain(engine_args={"max_num_seqs": 4, "max_logprobs": 5}),
    "a script": plain(engine="scripted", script={"num_tokens": 3}),
    "max equal to min": plain(replicas={"min": 2, "max": 2}),
    "max of null": plain(replicas={"min": 2, "max": None}),
    "480B on eight H100": on_h100(),
    "480B BF16 on sixteen H100": on_h100(BF16, EIGHT | {"data_parallel_size": 2, "nodes": 2}),
    "pools": pools(
        {"accelerator": "H100", "layout": EIGHT, "engine_args": {"max_num_seqs": 4}},
        {"accelerator": "H200", "layout": EIGHT | {"tensor_parallel_size": 4}},
    ),
    "YaRN": stretched(rope_parameters=YARN),
    "an FP8 cache": on_h100(engine_args={"kv_cache_dtype": "fp8"}),
    "a lease": plain() | {"wire": {"lease_s": 1.5}},
    "weights of another form": on_h100(
        layout={"tensor_parallel_size": 2}, engine_args={"load_format": "dummy"}
    ),
}


@pytest.fixture
def chart_refusal(render, refused):
    """What the chart says against a fleet; empty if it renders."""

    def found(tree):
        tree = copy.deepcopy(tree)
        values = {"fleet": tree, "accelerators": {"nvidia": {"gpusPerNode": 64}}}
        values["accelerators"]["amd"] = {"gpusPerNode": 64}
        try:
            render(values)
        except refused as error:
            return str(error)
        return ""

    return found


def fleet_refusal(tree):
    """What `serve`, a job and the application say against a fleet; empty if they take it."""
    try:
        config = FleetConfig.model_validate({**tree, "auth": "none"})
        check_fleet(config)
        completed(config)
    except (ValidationError, FleetError) as error:
        return str(error)
    return ""


@pytest.mark.parametrize("tree", REFUSED.values(), ids=REFUSED.keys())
def test_what_the_fleet_refuses_the_chart_refuses(chart_refusal, tree):
    assert fleet_refusal(tree)
    assert chart_refusal(tree)


@pytest.mark.parametrize("tree", ACCEPTED.values(), ids=ACCEPTED.keys())
def test_what_the_fleet_takes_the_chart_takes(chart_refusal, tree):
    assert fleet_refusal(tree) == ""
    assert chart_refusal(tree) == ""


SIZES = st.sampled_from([1, 1, 2, 3, 4, 8, 16])
LAYOUTS = st.fixed_dictionaries(
    {},
    optional={
        "tensor_parallel_size": SIZES,
        "pipeline_parallel_size": st.sampled_from([1, 2, 4]),
        "data_parallel_size": st.sampled_from([1, 2]),
        "expert_parallel": st.booleans(),
        "expert_load_balancing": st.booleans(),
        "nodes": st.sampled_from([1, 1, 1, 2, 3]),
    },
)
ARGS = st.dictionaries(
    st.sampled_from(["max_num_seqs", "max_model_len", "hf_overrides", "load_format", "port"]),
    st.just("x"),
    max_size=1,
) | st.fixed_dictionaries(
    {},
    optional={
        "gpu_memory_utilization": st.sampled_from([0.3, 0.9, 0.95, 1.0]),
        "kv_cache_dtype": st.sampled_from(["auto", "fp8"]),
    },
)
GROUP = {
    "accelerator": st.sampled_from(["H100", "H200", "B200", "AMD-Instinct-MI300X-OAM", "A100"]),
    "layout": LAYOUTS.filter(bool),
    "engine_args": ARGS,
}
MODELS = st.fixed_dictionaries(
    {
        "id": st.sampled_from(["a", "b"]),
        "source": st.sampled_from([FP8, BF16, SMALL, f"{SMALL}-FP8", "org/unknown"]),
        **GROUP,
    },
    optional={"max_model_len": st.sampled_from([1, 2, 4096, 131_072, 262_144])},
)


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(models=st.lists(MODELS, min_size=1, max_size=2))
def test_chart_and_fleet_agree_on_generated_fleets(chart_refusal, models):
    tree = fleet(*models)
    of_chart, of_fleet = chart_refusal(tree), fleet_refusal(tree)
    assume(of_fleet or not any(text in of_chart for text in OF_PODS))
    assert bool(of_chart) == bool(of_fleet), f"chart: {of_chart}\nfleet: {of_fleet}"
