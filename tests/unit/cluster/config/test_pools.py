from __future__ import annotations

import pytest
from pydantic import ValidationError

from qwenfleet.cluster.config.fleet import FleetConfig, dump
from qwenfleet.cluster.config.layout import Layout
from qwenfleet.cluster.config.model import ModelConfig, Pool, Replicas

TP8 = Layout(tensor_parallel_size=8)
MIXED = ModelConfig(
    id="coder",
    env={"A": "model", "B": "model"},
    engine_args={"dtype": "auto", "seed": 1},
    pools=(
        Pool(name="h100", accelerator="H100", layout=TP8, replicas=Replicas(min=2)),
        Pool(
            name="mi300x",
            accelerator="AMD-Instinct-MI300X-OAM",
            env={"B": "pool"},
            engine_args={"seed": 2},
        ),
    ),
)


def test_each_pool_is_the_model_on_its_own_machines() -> None:
    nvidia, amd = MIXED.engine_pools
    assert (nvidia.accelerator, nvidia.layout, nvidia.replicas.min) == ("H100", TP8, 2)
    assert (amd.accelerator, amd.layout, amd.replicas.min) == ("AMD-Instinct-MI300X-OAM", None, 1)
    assert amd.env == {"A": "model", "B": "pool"}
    assert amd.engine_args == {"dtype": "auto", "seed": 2}
    assert nvidia.id == amd.id == "coder"


def test_a_model_without_pools_is_its_own_pool() -> None:
    model = ModelConfig(id="coder")
    assert model.engine_pools == (model,)


def test_a_fleet_counts_the_engines_of_all_pools() -> None:
    assert FleetConfig(models=(MIXED, ModelConfig(id="small"))).num_engines == 4


def test_pools_survive_being_dumped_and_read() -> None:
    fleet = FleetConfig(models=(MIXED,))
    assert FleetConfig.model_validate(dump(fleet)) == fleet


@pytest.mark.parametrize(
    "extra", [{"accelerator": "H100"}, {"layout": TP8}, {"replicas": Replicas(min=2)}]
)
def test_a_field_of_a_pool_is_refused_on_a_model_with_pools(extra: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=f"{next(iter(extra))} is set together with pools"):
        ModelConfig.model_validate({"id": "coder", "pools": MIXED.pools} | extra)


def test_two_pools_with_one_name_are_refused() -> None:
    with pytest.raises(ValidationError, match="both called 'h100'"):
        ModelConfig(id="coder", pools=(MIXED.pools[0], MIXED.pools[0]))


def test_a_pool_may_not_set_an_argument_that_qwenfleet_sets() -> None:
    with pytest.raises(ValidationError, match="Use the model's 'layout' instead"):
        Pool(name="h100", engine_args={"tensor_parallel_size": 8})


def test_a_pool_may_not_set_what_gateways_read_for_all_pools() -> None:
    pool = Pool(name="h100", engine_args={"reasoning_parser": "qwen3"})
    with pytest.raises(ValidationError, match="Move it to the engine_args of 'coder'"):
        ModelConfig(id="coder", pools=(pool,))
    overrides = Pool(name="h100", engine_args={"hf_overrides": {"a": 1}})
    assert ModelConfig(id="coder", pools=(overrides,)).pools == (overrides,)
