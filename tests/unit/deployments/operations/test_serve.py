import io

import pytest

from qwenfleet.cluster.config.auth import hash_of
from qwenfleet.cluster.config.fleet import FleetConfig
from qwenfleet.cluster.config.load import with_overrides
from qwenfleet.cluster.errors import ConfigError, MachineError
from qwenfleet.cluster.local import cpu, memory, ports
from qwenfleet.cluster.models import sources
from qwenfleet.cluster.plan_errors import NoLayoutFits
from qwenfleet.cluster.planner.fleet_defaults import completed
from qwenfleet.cluster.units import GIB
from qwenfleet.deployments.operations import serve
from qwenfleet.deployments.operations.progress import Stages


def skip_checks(monkeypatch):
    """Turn off the checks of this machine."""
    for module, name in (
        (cpu, "check_cpu"),
        (ports, "check_port"),
        (memory, "check_memory"),
    ):
        monkeypatch.setattr(module, name, lambda *_: None)


def test_removed_settings_are_reported_before_anything_starts(monkeypatch, tmp_path):
    skip_checks(monkeypatch)
    monkeypatch.setattr(sources, "locate", lambda *_: str(tmp_path))
    model = {"id": "coder", "source": str(tmp_path), "env": {"VLLM_USE_V1": "1"}}
    stream = io.StringIO()
    serve.check(FleetConfig.model_validate({"models": [model]}), Stages(stream))
    assert "warning: model 'coder': vLLM 0.32 does not read VLLM_USE_V1." in stream.getvalue()


def test_engines_get_the_kv_cache_that_this_machine_has_room_for(monkeypatch, tmp_path):
    monkeypatch.setattr(cpu, "check_cpu", lambda *_: None)
    monkeypatch.setattr(ports, "check_port", lambda *_: None)
    monkeypatch.setattr(sources, "locate", lambda *_: str(tmp_path))
    models = [
        {"id": "open", "source": str(tmp_path), "replicas": {"min": 2}},
        {"id": "set", "source": str(tmp_path), "kv_cache_gib": 0.5},
    ]
    fleet = FleetConfig.model_validate({"models": models})
    least = 2 * memory.LEAST_KV_GIB + 0.5
    needs = memory.RAY_BYTES + memory.GATEWAY_BYTES + 3 * memory.PROCESS_BYTES

    def chosen(spare_gib):
        room = needs + int((least + spare_gib) * GIB) + 1
        monkeypatch.setattr(memory, "available_memory_bytes", lambda: room)
        found = serve.check(fleet, Stages(io.StringIO()))
        return [model.kv_cache_gib for model in found.models]

    assert chosen(0) == [memory.LEAST_KV_GIB, 0.5]
    assert chosen(1) == [memory.LEAST_KV_GIB + 0.5, 0.5]
    assert chosen(9) == [memory.USUAL_KV_GIB, 0.5]
    with pytest.raises(MachineError, match="the engines need"):
        chosen(-0.1)


def test_impossible_layout_is_refused_before_anything_starts(monkeypatch):
    skip_checks(monkeypatch)
    layout = {"tensor_parallel_size": 5}
    source = "Qwen/Qwen3-Coder-480B-A35B-Instruct-FP8"
    model = {"id": "coder", "source": source, "accelerator": "H100", "layout": layout}
    stages = Stages(io.StringIO())
    with pytest.raises(NoLayoutFits, match="96 attention heads do not divide evenly over TP5"):
        serve.check(FleetConfig.model_validate({"models": [model]}), stages)
    stages.say("stopped")


def test_large_model_without_an_accelerator_is_refused_before_it_is_looked_for(monkeypatch):
    skip_checks(monkeypatch)
    monkeypatch.setattr(memory, "available_memory_bytes", lambda: 64 * GIB)
    asked: list[str] = []
    monkeypatch.setattr(sources, "check_hub", asked.append)
    big = "Qwen/Qwen3-Coder-480B-A35B-Instruct"
    match = r"has no accelerator .* weights are 894 GiB and 63 GiB .* `qwenfleet plan --model Qwen/"
    with pytest.raises(MachineError, match=match):
        serve.check(with_overrides(FleetConfig(), model=big), Stages(io.StringIO()))
    assert not asked
    small = with_overrides(FleetConfig(), model="Qwen/Qwen3-Coder-30B-A3B-Instruct-FP8")
    serve.check(small, Stages(io.StringIO()))
    assert len(asked) == 1, "the memory holds it"


def test_too_few_gpus_are_refused_with_the_plan_command(monkeypatch):
    monkeypatch.setattr("ray.cluster_resources", lambda: {"GPU": 1.0})
    source = "Qwen/Qwen3-Coder-480B-A35B-Instruct-FP8"
    model = {"id": "coder", "source": source, "accelerator": "H100"}
    fleet = completed(FleetConfig.model_validate({"models": [model]}))
    with pytest.raises(MachineError, match=r"need 8 GPUs, .* has 1.*--gpus-per-node 1"):
        serve._check_gpus(fleet)


def test_keys_file_is_checked_before_anything_starts(monkeypatch, tmp_path):
    skip_checks(monkeypatch)
    monkeypatch.setattr(sources, "locate", lambda *_: str(tmp_path))
    file = tmp_path / "keys"

    def printed_for(auth):
        stream = io.StringIO()
        model = {"id": "coder", "source": str(tmp_path)}
        serve.check(FleetConfig.model_validate({"models": [model], "auth": auth}), Stages(stream))
        return stream.getvalue()

    with pytest.raises(ConfigError, match="cannot be read"):
        printed_for({"keys_file": str(file)})
    file.write_text("qf-x\n")
    with pytest.raises(ConfigError, match="line 1: not a key hash"):
        printed_for({"keys_file": str(file)})
    file.write_text("# nobody yet\n")
    reported = printed_for({"keys_file": str(file)})
    assert f"warning: {file} has no key: every request is refused" in reported
    assert "warning" not in printed_for({"keys_file": str(file), "keys": [hash_of("a")]})
    file.write_text(hash_of("a"))
    assert "warning" not in printed_for({"keys_file": str(file)})
    assert "warning" not in printed_for("none")
