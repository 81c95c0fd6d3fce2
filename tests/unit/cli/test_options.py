"""Options that several commands share: refused if they have no effect."""

from __future__ import annotations

import pytest

from qwenfleet.cli import __main__ as cli


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["status", "--watch"], "--watch has no effect without --kube. Add --kube."),
        (["status", "-n", "x"], "--namespace has no effect without --kube. Add --kube."),
        (["status", "--kube", "--port", "1"], "--port cannot be used with --kube. Remove one of"),
        (
            ["drain", "e1", "--context", "x"],
            "--context has no effect without --node. Add --node, or ",
        ),
        (["drain", "--node", "n", "--port", "1"], "--port cannot be used with --node. Remove it: "),
    ],
)
def test_options_without_effect_are_refused(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == 1
    assert capsys.readouterr().err.startswith(f"qwenfleet: {sentence}")
