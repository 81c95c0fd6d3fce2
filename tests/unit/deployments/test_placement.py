from __future__ import annotations

import pytest

from qwenfleet.cluster.config.layout import Layout
from qwenfleet.cluster.config.model import ModelConfig
from qwenfleet.deployments.placement import NodePlace, actor_resources, node_bundle, sharding_args

PLACE = NodePlace(1, "10.0.0.1", 4000, 4001)


def test_a_layout_on_one_node_names_no_other() -> None:
    arguments = sharding_args(Layout.parse("TP4xDP2+EP8"), None)
    assert arguments == {
        "tensor_parallel_size": 4,
        "pipeline_parallel_size": 1,
        "data_parallel_size": 2,
        "enable_expert_parallel": True,
        "enable_eplb": False,
    }


def test_a_node_of_several_knows_its_rank_and_where_the_first_listens() -> None:
    arguments = sharding_args(Layout.parse("TP8xDP2+EP16@2"), PLACE)
    assert arguments["distributed_executor_backend"] == "mp"
    assert (arguments["nnodes"], arguments["node_rank"]) == (2, 1)
    assert (arguments["master_addr"], arguments["master_port"]) == ("10.0.0.1", 4000)
    assert (arguments["data_parallel_address"], arguments["data_parallel_rpc_port"]) == (
        "10.0.0.1",
        4001,
    )


def test_experts_are_balanced_when_the_layout_asks_for_it() -> None:
    layout = Layout(tensor_parallel_size=8, expert_parallel=True, expert_load_balancing=True)
    assert sharding_args(layout, None)["enable_eplb"] is True


@pytest.mark.parametrize(
    ("accelerator", "layout", "bundle"),
    [
        (None, "TP2", {"CPU": 1}),
        ("H100", "TP8", {"CPU": 1, "GPU": 8, "accelerator_type:H100": 0.001}),
        ("H100", "TP8xDP2+EP16@2", {"CPU": 1, "GPU": 8, "accelerator_type:H100": 0.001}),
    ],
)
def test_a_bundle_has_all_gpus_of_one_node(
    accelerator: str | None, layout: str, bundle: dict[str, float]
) -> None:
    model = ModelConfig(id="m", accelerator=accelerator, layout=Layout.parse(layout))
    assert node_bundle(model) == bundle


def test_an_actor_fills_its_bundle() -> None:
    assert actor_resources({"CPU": 1, "GPU": 8, "accelerator_type:H100": 0.001}) == {
        "num_cpus": 1,
        "num_gpus": 8,
        "resources": {"accelerator_type:H100": 0.001},
    }
    assert actor_resources({"CPU": 1}) == {"num_cpus": 1}
