"""What is derived from the list of metrics is up to date in the repository."""

from __future__ import annotations

from pathlib import Path

import pytest

from qwenfleet.cluster.monitoring import ROOT, generated


@pytest.mark.parametrize("path", list(generated()), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_generated_file_is_up_to_date(path: Path) -> None:
    wanted = generated()[path]
    assert path.read_text(encoding="utf-8") == wanted, "run python -m qwenfleet.cluster.monitoring"
