"""One real fleet for all integration tests: Ray, HAProxy, two gateways, vLLM engines on CPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

FLEET = """
name: integration
models:
  - id: smollm2
    source: smollm2-135m-instruct
    replicas: {min: 1}
  - id: tiny
    source: tiny-qwen3-moe
    replicas: {min: 2}
    max_model_len: 2048
    engine_args: {dtype: float32}
  - id: scripted
    source: tiny-qwen3-moe
    engine: scripted
    max_model_len: 4096
    replicas: {min: 2}
    script: {num_tokens: 3000, step_s: 0.02, tokens: [104, 105, 32]}
gateway: {replicas: 2, port: {port}, max_body_bytes: 1000000, keep_alive_s: 1}
"""


@pytest.fixture(scope="session")
def fleet(run_fleet: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with run_fleet(FLEET, 5, tmp_path_factory.mktemp("fleet")) as fleet:
        yield fleet
