"""A real vLLM core that cannot start says why, in the error and in the output of its pod."""

from __future__ import annotations

import asyncio
import gc
from pathlib import Path

import pytest

from qwenfleet.cluster.config.model import ModelConfig
from qwenfleet.cluster.errors import EngineStartError
from qwenfleet.cluster.models.sources import locate
from qwenfleet.deployments.telemetry.pod_log import POD_LOG, PodLog
from qwenfleet.deployments.vllm_adapter.core import VllmCore

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(480),
    # vLLM's client leaves its own to the garbage collector, which the test runs.
    pytest.mark.filterwarnings("ignore:Unclosed context:ResourceWarning"),
]

MODEL = ModelConfig(
    id="tiny", source="tiny-qwen3-moe", max_model_len=256, kv_cache_gib=100_000.0
)  # more than any machine has
WHY = "less than requested memory for kv (100000.0 GiB)"


def test_a_core_without_memory_says_how_much_it_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "output"
    output.touch()
    monkeypatch.setenv(POD_LOG, str(output))
    core = VllmCore(MODEL, locate(MODEL.source), pod_log=PodLog("plain", {"engine": "e1"}))
    with pytest.raises(EngineStartError) as caught:
        asyncio.run(core.start())
    core.shutdown()
    reason = caught.value.reason
    del caught
    gc.collect()

    assert "Available memory on node 0" in reason
    assert WHY in reason
    ends = [line for line in output.read_text().splitlines() if "ERROR EngineCore failed" in line]
    assert len(ends) == 1
    assert WHY in ends[0]
    assert "engine=e1" in ends[0]
