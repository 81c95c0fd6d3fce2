from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from qwenfleet.deployments.vllm_adapter import plugin_metadata
from qwenfleet.deployments.vllm_adapter.resume_plugin import PLUGIN

ROOT = Path(__file__).resolve().parents[4]
FIND = """
import sys
sys.path.insert(0, sys.argv[1])
from importlib.metadata import entry_points
import qwenfleet.deployments.vllm_adapter.plugin_metadata as plugin_metadata
before = plugin_metadata.NAME in entry_points(group=plugin_metadata.GROUP).names
plugin_metadata.ensure(sys.argv[2])
import subprocess
child = subprocess.run([sys.executable, "-S", "-c", "from importlib.metadata import entry_points;"
    "print(*(e.value for e in entry_points(group='vllm.general_plugins')))"],
    capture_output=True, text=True, check=True)
print(before, child.stdout.strip())
"""


def test_the_metadata_matches_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    plugins = project["entry-points"][plugin_metadata.GROUP]
    assert plugins == {plugin_metadata.NAME: plugin_metadata.TARGET}
    assert plugin_metadata.NAME == PLUGIN


def test_children_of_a_process_without_an_installed_qwenfleet_find_the_plugin(
    tmp_path: Path,
) -> None:
    code = tmp_path / "code"  # an installed checkout has metadata next to its code
    code.mkdir()
    (code / "qwenfleet").symlink_to(ROOT / "qwenfleet")
    found = subprocess.run(
        [sys.executable, "-S", "-c", FIND, str(code), str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
        cwd=tmp_path,  # `-c` looks for metadata where it runs, and a checkout has some
    )
    assert found.stdout.strip() == f"False {plugin_metadata.TARGET}"


def test_an_installed_qwenfleet_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metadata = tmp_path / "site" / "some-1.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "entry_points.txt").write_text(
        f"[{plugin_metadata.GROUP}]\n{plugin_metadata.NAME} = elsewhere:register\n"
    )
    monkeypatch.syspath_prepend(str(metadata.parent))
    plugin_metadata.ensure(str(tmp_path / "nowhere"))
