"""The command line: help, and failures that are one sentence."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from qwenfleet.cli import __main__ as cli
from qwenfleet.cli import completion
from qwenfleet.cluster.doctor import examination
from qwenfleet.cluster.doctor.finding import Finding, Subject, note, ok, problem
from qwenfleet.cluster.errors import DrainRefused
from qwenfleet.cluster.local import fleets
from qwenfleet.cluster.local.fleets import RunningFleet
from qwenfleet.deployments.operations import checkup, drain, inquiry, status

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def no_fleet_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def test_the_command_runs_as_a_program_without_ray_or_vllm() -> None:
    code = (
        "import sys; from qwenfleet.cli import __main__ as cli\n"
        "try: cli.main(['--help'])\n"
        "finally: sys.stderr.write(repr(sorted({'ray', 'vllm', 'torch'} & set(sys.modules))))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "serve" in answer.stdout
    assert "status" in answer.stdout
    assert "drain" in answer.stdout
    assert answer.stderr == "[]"


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("serve", ["--config", "--model", "--engines", "--gateways", "--host", "--port"]),
        ("status", ["--json", "--port"]),
        ("drain", ["ENGINE", "--deadline", "--force", "--port"]),
        ("plan", ["--model", "--accelerator", "--goal", "--explain", "--output", "--kube"]),
        ("doctor", ["--json", "--verbose", "--address", "--port", "exit status"]),
        ("top", ["--once", "--json", "--url", "--fleet", "--port", "--interval"]),
        ("watch", ["--prometheus", "--listen", "--retention", "--fleet", "--interval"]),
    ],
)
def test_help_names_the_options_of_a_command(
    capsys: pytest.CaptureFixture[str], command: str, options: list[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main([command, "--help"])
    assert caught.value.code == 0
    printed = capsys.readouterr().out
    assert all(option in printed for option in options)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["fly"],
        ["serve", "--config", "x", "--model", "y"],
        ["status", "--port", "x"],
        ["drain"],
        ["drain", "e1", "e2"],
        ["drain", "e1", "--deadline", "soon"],
        ["drain", "e1", "--deadline", "-1"],
        ["drain", "e1", "--deadline", "nan"],
        ["drain", "e1", "--deadline", "inf"],
        ["drain", "e1", "--port", "x"],
        ["doctor", "--port", "8000", "--address", "auto"],
        ["top", "--interval", "soon"],
        ["top", "--interval", "0"],
        ["top", "--interval", "nan"],
        ["watch", "--listen", "x"],
    ],
)
def test_an_invalid_command_line_prints_the_usage(
    capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    assert "usage: qwenfleet" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("gateways: {}\n", "unknown key 'gateways'"),
        ("gateway: {port: 99999}\n", "gateway.port"),
        ("models: [\n", "fleet.yaml"),
    ],
)
def test_an_invalid_configuration_is_one_sentence_without_a_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, printed: str
) -> None:
    file = tmp_path / "fleet.yaml"
    file.write_text(text)
    assert cli.main(["serve", "--config", str(file)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"qwenfleet: {file}")
    assert printed in err
    assert "Traceback" not in err
    assert len(err.strip().splitlines()) == 1


def test_a_missing_configuration_file_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["serve", "--config", str(tmp_path / "none.yaml")]) == 1
    assert "none.yaml" in capsys.readouterr().err


def test_status_without_a_fleet_says_how_to_start_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["status"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err == (
        "qwenfleet: you have no running fleet on this machine. Start one with `qwenfleet serve`.\n"
    )


@pytest.fixture
def answering_fleet(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run file of this process, and a registry's answer without a cluster."""
    fleets.write(
        RunningFleet(
            pid=os.getpid(),
            started_at=fleets.own_start(),
            name="demo",
            url="http://127.0.0.1:8000",
            ray_address="127.0.0.1:6379",
            ray_token_path="/state/7.token",
            metrics_port=9000,
            models=["coder"],
        )
    )

    def read(fleet: RunningFleet) -> status.FleetStatus:
        engine = status.EngineStatus("e1", "coder", "node", 7, "ready", 2, 1, 0.25)
        return status.FleetStatus(fleet.name, fleet.url, "http://m", (), (), (engine,))

    monkeypatch.setattr(inquiry, "read", read)


@pytest.mark.usefixtures("answering_fleet")
def test_status_shows_a_table_or_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["status", "--port", "8000"]) == 0
    assert "e1" in capsys.readouterr().out
    assert cli.main(["status", "--json"]) == 0
    printed: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert printed["name"] == "demo"
    assert printed["engines"][0]["kv_usage"] == 0.25


@pytest.mark.usefixtures("answering_fleet")
def test_status_is_1_if_a_part_does_not_answer(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(fleet: RunningFleet) -> status.FleetStatus:
        problem = "the registry does not answer"
        return status.FleetStatus(fleet.name, fleet.url, "", (), (), (), problems=(problem,))

    monkeypatch.setattr(inquiry, "read", read)
    assert cli.main(["status", "--port", "8000"]) == 1
    assert "problem: the registry does not answer" in capsys.readouterr().out


@pytest.mark.usefixtures("answering_fleet")
def test_status_of_an_unknown_port_names_the_running_fleets(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["status", "--port", "9999"]) == 1
    err = capsys.readouterr().err
    assert "9999" in err
    assert "http://127.0.0.1:8000" in err


@pytest.mark.usefixtures("answering_fleet")
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], (60.0, False)),
        (["--deadline", "2.5", "--port", "8000"], (2.5, False)),
        (["--force", "--deadline", "0"], (0.0, True)),
    ],
)
def test_drain_passes_its_options_on_and_prints_progress(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    expected: tuple[float, bool],
) -> None:
    asked: list[Any] = []

    def answer(fleet: RunningFleet, engine: str, **options: Any) -> None:
        asked.append((fleet.name, engine, options["deadline_s"], options["is_forced"]))
        options["say"]("e1 stopped")

    monkeypatch.setattr(drain, "drain", answer)
    assert cli.main(["drain", "e1", *arguments]) == 0
    assert asked == [("demo", "e1", *expected)]
    assert capsys.readouterr().out == "e1 stopped\n"


@pytest.mark.usefixtures("answering_fleet")
def test_a_refused_drain_is_one_sentence_on_stderr(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise DrainRefused("no engine is called 'x'", "There are: e1.")

    monkeypatch.setattr(drain, "drain", refuse)
    assert cli.main(["drain", "x"]) == 1
    out, err = capsys.readouterr()
    assert (out, err) == ("", "qwenfleet: no engine is called 'x'. There are: e1.\n")


def test_drain_without_a_fleet_says_how_to_start_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["drain", "e1"]) == 1
    assert "qwenfleet serve" in capsys.readouterr().err


@pytest.mark.usefixtures("answering_fleet")
def test_drain_of_an_unknown_port_names_the_running_fleets(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["drain", "e1", "--port", "9999"]) == 1
    assert "http://127.0.0.1:8000" in capsys.readouterr().err


FINE = ok(Subject.PYTHON, "Python 3.12.1")
SURPRISE = note(Subject.CLOCK, "nothing synchronizes it", "Run chrony.")
BROKEN = problem(Subject.VLLM, "vLLM is not installed", "Run `make env`.")


@pytest.mark.parametrize(
    ("findings", "status"),
    [([FINE], 0), ([FINE, SURPRISE], 0), ([FINE, BROKEN, SURPRISE], 1)],
)
@pytest.mark.parametrize("options", [[], ["--verbose"], ["--json"]])
def test_doctors_exit_status_is_1_if_there_is_a_problem(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    findings: list[Finding],
    status: int,
    options: list[str],
) -> None:
    monkeypatch.setattr(examination, "judge", lambda facts: findings)
    assert cli.main(["doctor", *options]) == status
    out, err = capsys.readouterr()
    assert err == ""
    if options == ["--json"]:
        assert json.loads(out)["problems"] == status
    else:
        assert ("Python 3.12.1" in out) is (options == ["--verbose"])


@pytest.mark.parametrize(
    ("options", "expected"),
    [(["--address", "auto"], (None, "auto")), (["--port", "8000"], (8000, None))],
)
def test_doctor_of_a_cluster_asks_its_nodes(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    expected: tuple[int | None, str | None],
) -> None:
    asked: list[Any] = []

    def run(port: int | None, address: str | None) -> list[Finding]:
        asked.append((port, address))
        return [SURPRISE]

    monkeypatch.setattr(checkup, "run", run)
    assert cli.main(["doctor", *options]) == 0
    assert asked == [expected]
    assert "Run chrony." in capsys.readouterr().out


def test_doctor_of_a_fleet_that_does_not_exist_is_one_sentence(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["doctor", "--port", "8000"]) == 1
    assert "qwenfleet serve" in capsys.readouterr().err


def test_doctor_as_a_program_is_quick_and_loads_neither_ray_nor_torch() -> None:
    code = (
        "import sys, time; from qwenfleet.cli import __main__ as cli\n"
        "begin = time.monotonic(); cli.main(['doctor', '--json'])\n"
        "loaded = sorted({'ray', 'vllm', 'torch'} & set(sys.modules))\n"
        "sys.stderr.write(repr((loaded, time.monotonic() - begin < 3)))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert set(json.loads(answer.stdout)) == {"findings", "problems"}
    assert answer.stderr == "([], True)"


def test_a_plan_needs_no_ray_and_a_refusal_is_one_sentence(
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = ["plan", "--model", "qwen3-coder-480b-fp8"]
    assert cli.main([*model, "--accelerator", "MI300X"]) == 0
    assert "Choice: TP8+EP8" in capsys.readouterr().out
    assert cli.main([*model, "--accelerator", "H100", "--layout", "TP5"]) == 1
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    assert "96 attention heads do not divide evenly over TP5 (rule heads)" in printed


def test_a_plan_for_an_unreachable_cluster_is_one_sentence(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    options = ["--from-cluster", "--address", "127.0.0.1:9"]
    assert cli.main(["plan", "--model", "qwen3-coder-480b-fp8", *options]) == 1
    assert "no Ray cluster answers at 127.0.0.1:9" in capsys.readouterr().err


def test_version_names_the_command_and_the_one_in_pyproject(
    capsys: pytest.CaptureFixture[str],
) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    with pytest.raises(SystemExit) as caught:
        cli.main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"qwenfleet {project['version']}\n"


def test_a_start_reads_no_version_and_imports_no_completion() -> None:
    code = (
        "import sys; from qwenfleet.cli import __main__ as cli\n"
        "try: cli.main(['--help'])\n"
        "finally: sys.stderr.write(repr(sorted({'shtab', 'qwenfleet.cluster.doctor.packages'}"
        " & set(sys.modules))))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert answer.stderr == "[]"


@pytest.mark.parametrize("shell", completion.SHELLS)
def test_a_completion_script_has_each_command(
    capsys: pytest.CaptureFixture[str], shell: str
) -> None:
    assert cli.main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for word in ("serve", "status", "drain", "doctor", "plan", "completion", "accelerator"):
        assert word in script


def test_bash_completes_commands_options_and_files(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    cli.main(["completion", "bash"])
    (tmp_path / "script").write_text(capsys.readouterr().out)
    (tmp_path / "coder.yaml").touch()
    cases = {
        "qwenfleet do": "doctor",
        "qwenfleet serve --eng": "--engines",
        "qwenfleet serve --config cod": "coder.yaml",
    }
    for typed, expected in cases.items():
        words = typed.split()
        code = (
            "source ./script; set -- $(complete -p qwenfleet | grep -o -- '-F [^ ]*'); "
            f'COMP_WORDS=({typed}); COMP_CWORD={len(words) - 1}; COMP_LINE="{typed}"; '
            f"COMP_POINT={len(typed)}; $2 qwenfleet {words[-1]} {words[-2]}; "
            'printf "%s\\n" "${COMPREPLY[@]}"'
        )
        answer = subprocess.run(["bash", "-c", code], cwd=tmp_path, capture_output=True, text=True)
        assert answer.stdout.split() == [expected], answer.stderr
