"""Options that several commands share: refused when they have no effect."""

from __future__ import annotations

import pytest

from qwenfleet.cli import __main__ as cli


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["status", "--watch"], "--watch is given without --kube. Add --kube."),
        (["status", "-n", "x"], "--namespace is given without --kube. Add --kube."),
        (["status", "--kube", "--port", "1"], "--port is given beside --kube. Leave it out, or "),
        (["drain", "e1", "--context", "x"], "--context is given without --node. Add --node, or "),
        (["drain", "--node", "n", "--port", "1"], "--port is given beside --node. Leave it out: "),
    ],
)
def test_options_without_effect_are_refused(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == 1
    assert capsys.readouterr().err.startswith(f"qwenfleet: {sentence}")
