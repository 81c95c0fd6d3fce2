"""A layout becomes vLLM's arguments, on each node of an engine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from qwenfleet.cluster.config.layout import Layout
from qwenfleet.cluster.config.model import ModelConfig
from qwenfleet.cluster.errors import MachineError
from qwenfleet.cluster.local import memory
from qwenfleet.cluster.units import GIB
from qwenfleet.deployments.vllm_adapter.engine_args import NodePlace, engine_args, sharding_args

PLACE = NodePlace(1, "10.0.0.1", 4000, 4001)


def test_a_layout_on_one_node_sets_no_node_arguments() -> None:
    arguments = sharding_args(Layout.parse("TP4xDP2+EP8"), None)
    assert arguments == {
        "tensor_parallel_size": 4,
        "pipeline_parallel_size": 1,
        "data_parallel_size": 2,
        "enable_expert_parallel": True,
        "enable_eplb": False,
    }


def test_each_of_several_nodes_gets_its_rank_and_the_first_nodes_address() -> None:
    arguments = sharding_args(Layout.parse("TP8xDP2+EP16@2"), PLACE)
    assert arguments["distributed_executor_backend"] == "mp"
    assert (arguments["nnodes"], arguments["node_rank"]) == (2, 1)
    assert (arguments["master_addr"], arguments["master_port"]) == ("10.0.0.1", 4000)
    assert (arguments["data_parallel_address"], arguments["data_parallel_rpc_port"]) == (
        "10.0.0.1",
        4001,
    )


def test_experts_are_balanced_if_the_layout_asks_for_it() -> None:
    layout = Layout(tensor_parallel_size=8, expert_parallel=True, expert_load_balancing=True)
    assert sharding_args(layout, None)["enable_eplb"] is True


def test_a_replica_knows_its_place_before_vllm_is_imported() -> None:
    """The import takes 9 s of CPU, and the engines of a node take turns."""
    name = "qwenfleet.deployments.vllm_adapter.engine_args"
    code = f"import sys, {name}; assert 'vllm' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_kv_cache_of_a_cpu_engine_follows_from_its_container_s_limit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"x" * 1024)
    fixed = memory.RAY_BYTES + memory.engine_bytes(1024, 0)

    def cache_gib(spare_gib: float, **fields: object) -> float:
        limit = fixed + int(spare_gib * GIB)
        monkeypatch.setattr(memory, "container_limit_bytes", lambda: limit)
        model = ModelConfig.model_validate({"id": "a", **fields})
        found = engine_args(model, str(tmp_path)).kv_cache_memory_bytes
        assert found is not None
        return found / GIB

    assert cache_gib(0.5) == 0.5
    assert cache_gib(5) == memory.USUAL_KV_GIB
    assert cache_gib(5, kv_cache_gib=3.0) == 3
    own = {"kv_cache_memory_bytes": GIB}
    assert cache_gib(5, kv_cache_gib=3.0, engine_args=own) == 1
    with pytest.raises(MachineError, match="memory limit of its container"):
        cache_gib(0.1)
    with pytest.raises(MachineError, match="memory limit of its container"):
        cache_gib(0.5, engine_args=own)
