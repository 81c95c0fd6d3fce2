"""Loads the Python scripts in .ci as modules: that folder is not a package."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

_FOLDER = Path(__file__).resolve().parents[1] / ".ci"


def _load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"ci_{name}", _FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


word_list = _load("word_list")
lock = _load("lock")
setup_env = _load("setup_env")
sys.modules["lock"] = lock  # as the next script imports it
image_requirements = _load("image_requirements")
