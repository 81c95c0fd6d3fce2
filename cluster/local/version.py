"""The version of the code that runs, and where that code lies."""

from __future__ import annotations

import os
import tomllib
from importlib import metadata
from pathlib import Path


def own_version() -> str:
    """Version of the running code: that of its checkout, or of the installed package.

    A Ray job's working directory is a checkout that hides the package installed in the image.
    """
    file = code_root() / "pyproject.toml"
    project = tomllib.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if project.get("project", {}).get("name") == "qwenfleet":
        return str(project["project"]["version"])
    try:
        return metadata.version("qwenfleet")
    except metadata.PackageNotFoundError:
        return "unknown"


def code_root() -> Path:
    """Directory that contains `qwenfleet/`: a checkout, or site-packages."""
    import qwenfleet

    return Path(os.path.dirname(str(qwenfleet.__file__))).parent
