"""Fleets of sharded engines on CPU; plugin/ adds what stock vLLM lacks for that."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

PLUGIN = Path(__file__).with_name("plugin")
MODEL = """
    source: tiny-qwen3-moe
    max_model_len: 4096
    kv_cache_gib: 0.1
    engine_args: {dtype: float32}
    env: {PYTHONPATH: PLUGIN}
""".replace("PLUGIN", str(PLUGIN))
LAYOUTS = {
    "tp1": "{}",
    "tp2": "{tensor_parallel_size: 2}",
    "tp2-ep": "{tensor_parallel_size: 2, expert_parallel: true}",
    "dp2-ep": "{data_parallel_size: 2, expert_parallel: true}",
}


@pytest.fixture(scope="module")
def layouts(run_fleet: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """One engine of each layout, each as its own model."""
    models = "".join(
        f"  - id: {name}{MODEL}    layout: {layout}\n" for name, layout in LAYOUTS.items()
    )
    text = f"name: layouts\nmodels:\n{models}gateway: {{port: {{port}}}}\n"
    with run_fleet(text, len(LAYOUTS), tmp_path_factory.mktemp("layouts")) as fleet:
        yield fleet


@pytest.fixture(scope="module")
def mixed(run_fleet: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """One model in two pools of different layouts."""
    pools = "".join(
        f"      - {{name: {name}, layout: {LAYOUTS[name]}}}\n" for name in ("tp2-ep", "dp2-ep")
    )
    text = (
        f"name: mixed\nmodels:\n  - id: tiny{MODEL}    pools:\n{pools}gateway: {{port: {{port}}}}\n"
    )
    with run_fleet(text, 2, tmp_path_factory.mktemp("mixed")) as fleet:
        yield fleet
