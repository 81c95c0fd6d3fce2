"""Every way to deploy a fleet refuses the same settings and gives the same warnings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from qwenfleet.cluster.config.auth import hash_of
from qwenfleet.cluster.config.fleet import FleetConfig, dump
from qwenfleet.cluster.errors import ConfigError, FleetError, MachineError
from qwenfleet.cluster.planner.fleet_checks import check_cpu_models, check_fleet
from qwenfleet.cluster.units import GIB
from qwenfleet.deployments import __main__ as command
from qwenfleet.deployments.app import build
from qwenfleet.deployments.operations import deploy

CODER = "Qwen/Qwen3-Coder-480B-A35B-Instruct-FP8"
Deploy = Callable[[dict[str, Any]], str]
"""Deploys a configuration and returns the error message, or "" without one."""


@pytest.fixture(params=["ray job", "helm"])
def deployed(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Deploy:
    def job(tree: dict[str, Any]) -> str:
        done: list[str] = []
        monkeypatch.setattr(deploy, "deploy", lambda *_, **__: done.append("deployed"))
        file = tmp_path / "fleet.yaml"
        file.write_text(yaml.safe_dump(tree))
        status = command.main([str(file)])
        assert (status == 0) is bool(done)
        return capsys.readouterr().err

    def chart(tree: dict[str, Any]) -> str:
        try:
            build(dump(FleetConfig.model_validate(tree)))
        except FleetError as error:
            return str(error)
        return ""

    return job if request.param == "ray job" else chart


def fleet(model: dict[str, Any] | None = None, **tree: Any) -> dict[str, Any]:
    return {"models": [{"id": "coder", "source": CODER, **(model or {})}], **tree}


def test_a_setting_that_vllm_does_not_read_gets_a_warning(
    deployed: Deploy, caplog: pytest.LogCaptureFixture
) -> None:
    assert deployed(fleet({"env": {"VLLM_USE_V1": "1"}})) == ""
    assert "model 'coder': vLLM 0.32 does not read VLLM_USE_V1." in caplog.text


def test_a_context_that_no_method_reaches_is_refused(deployed: Deploy) -> None:
    printed = deployed(fleet({"max_model_len": 1_010_000}))
    assert "max_model_len 1,010,000 is above the 262,144 tokens that the model supports" in printed


def test_a_keys_file_without_a_key_gets_a_warning(
    deployed: Deploy, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keys = tmp_path / "keys"
    keys.write_text("# nobody yet\n")
    assert deployed(fleet(auth={"keys_file": str(keys)})) == ""
    assert f"{keys} has no key: every request is refused" in caplog.text


def test_a_keys_file_with_a_wrong_line_is_refused(deployed: Deploy, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("qf-x\n")
    printed = deployed(fleet(auth={"keys_file": str(keys)}))
    assert f"{keys} line 1" in printed
    assert "qf-x" not in printed


def test_a_missing_keys_file_is_only_an_error_next_to_a_gateway(
    deployed: Deploy, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tree = fleet(auth={"keys_file": str(tmp_path / "mounted-elsewhere")})
    assert deployed(tree) == ""
    assert caplog.text == ""
    with pytest.raises(ConfigError, match="cannot be read"):
        check_fleet(FleetConfig.model_validate(tree), has_gateway=True)


def test_a_correct_fleet_gets_no_warning(
    deployed: Deploy, caplog: pytest.LogCaptureFixture
) -> None:
    assert deployed(fleet({"max_model_len": 262_144}, auth={"keys": [hash_of("a")]})) == ""
    assert caplog.text == ""


@pytest.mark.parametrize(
    "change",
    [{"accelerator": "H100"}, {"engine": "scripted"}, {"engine_args": {"load_format": "dummy"}}],
)
def test_only_engines_that_load_the_weights_on_cpus_need_the_memory(change: dict[str, Any]) -> None:
    with pytest.raises(MachineError, match=r"'coder' .* weights are 449 GiB and 8 GiB of memory"):
        check_cpu_models(FleetConfig.model_validate(fleet()), 8 * GIB)
    check_cpu_models(FleetConfig.model_validate(fleet()), 460 * GIB)
    check_cpu_models(FleetConfig.model_validate(fleet(change)), 8 * GIB)


def test_weights_in_a_directory_are_not_judged_by_its_name(tmp_path: Path) -> None:
    directory = tmp_path / "Qwen3-Coder-480B-A35B-Instruct"
    directory.mkdir()
    check_cpu_models(FleetConfig.model_validate(fleet({"source": str(directory)})), GIB)
