import io

from qwenfleet.cluster import machine, sources
from qwenfleet.cluster.config import FleetConfig
from qwenfleet.deployments import launch
from qwenfleet.deployments.progress import Stages


def test_settings_that_are_gone_are_said_before_anything_starts(monkeypatch, tmp_path):
    for name in ("check_cpu", "check_port", "check_memory"):
        monkeypatch.setattr(machine, name, lambda *_: None)
    monkeypatch.setattr(sources, "locate", lambda *_: str(tmp_path))
    model = {"id": "coder", "source": str(tmp_path), "env": {"VLLM_USE_V1": "1"}}
    stream = io.StringIO()
    launch.check(FleetConfig.model_validate({"models": [model]}), Stages(stream))
    assert "warning: model 'coder': vLLM 0.32 does not read VLLM_USE_V1." in stream.getvalue()
