"""The address of metrics that tests of `top` and `watch` read."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


@pytest.fixture(scope="session")
def metrics_text() -> ModuleType:
    """tests/metrics_page.py."""
    module = sys.modules.get("metrics_page")
    if module is None:
        path = Path(__file__).parents[2] / "metrics_page.py"
        spec = importlib.util.spec_from_file_location("metrics_page", path)
        assert spec is not None
        assert spec.loader is not None
        module = sys.modules["metrics_page"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return module


@pytest.fixture
def metrics_page(metrics_text: Any) -> Iterator[Any]:
    page = metrics_text.MetricsPage()
    yield page
    page.stop()
