"""Plugin metadata: lets vLLM find the resume plugin if qwenfleet runs from a directory.

vLLM finds plugins by the metadata of installed packages. A wheel or `pip install -e` includes ours;
a Ray job's working directory has none, so an engine writes it before it imports vLLM.
"""

from __future__ import annotations

import os
import sys
import tempfile
from importlib.metadata import entry_points
from pathlib import Path
from typing import Final

GROUP: Final = "vllm.general_plugins"
NAME: Final = "qwenfleet_resume"
TARGET: Final = "qwenfleet.deployments.vllm_adapter.resume_plugin:register"
"""The entry point of pyproject.toml; a test compares them."""


def ensure(parent: str | None = None) -> None:
    """Add the plugin's metadata to the Python path of this process and its children, unless it is
    installed. The files stay in `parent`, by default the directory for temporary files."""
    if NAME in entry_points(group=GROUP).names:
        return
    folder = Path(tempfile.mkdtemp(prefix="qwenfleet-plugin-", dir=parent))
    metadata = folder / "qwenfleet_plugins-1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: qwenfleet-plugins\nVersion: 1\n", encoding="utf-8"
    )
    (metadata / "entry_points.txt").write_text(f"[{GROUP}]\n{NAME} = {TARGET}\n", encoding="utf-8")
    sys.path.insert(0, str(folder))
    others = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(folder), *([others] if others else [])])
