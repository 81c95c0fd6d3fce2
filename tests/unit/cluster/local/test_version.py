"""The version of the code that runs."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import pytest

from qwenfleet.cluster.local import version


def test_a_checkout_s_own_version_comes_before_what_is_installed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    project = tmp_path / "pyproject.toml"
    monkeypatch.setattr(version, "code_root", lambda: tmp_path)
    monkeypatch.setattr(metadata, "version", lambda name: f"{name} 1.0")
    assert version.own_version() == "qwenfleet 1.0"  # from a wheel
    project.write_text('[project]\nname = "another"\nversion = "3.0"\n')
    assert version.own_version() == "qwenfleet 1.0"
    project.write_text('[project]\nname = "qwenfleet"\nversion = "2.0"\n')
    assert version.own_version() == "2.0"


def test_a_copy_without_metadata_has_an_unknown_version(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def absent(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(version, "code_root", lambda: tmp_path)
    monkeypatch.setattr(metadata, "version", absent)
    assert version.own_version() == "unknown"
