"""`qwenfleet top` as a command: once, live in a terminal, and its errors."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qwenfleet.cli import __main__ as cli
from qwenfleet.cluster.live import screen
from qwenfleet.cluster.local import fleets
from qwenfleet.cluster.local.fleets import RunningFleet
from qwenfleet.cluster.local.ports import free_ports

ROOT = Path(__file__).resolve().parents[3]
PROGRAM = [sys.executable, "-m", "qwenfleet.cli", "top", "--interval", "0.2"]


@pytest.fixture(autouse=True)
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def run_a_fleet(metrics_port: int, name: str = "demo", port: int = 8000) -> None:
    fleets.write(
        RunningFleet(
            pid=os.getpid(),
            started_at=fleets.own_start(),
            name=name,
            url=f"http://127.0.0.1:{port}",
            ray_address="127.0.0.1:6379",
            ray_token_path="/state/7.token",
            metrics_port=metrics_port,
            models=["coder"],
        )
    )


@pytest.fixture
def fleet(metrics_page: Any, metrics_text: Any) -> Iterator[Any]:
    """A fleet whose processes report five times a second, with a growing `page.events`."""
    stopped = threading.Event()

    def report() -> None:
        events = 0.0
        while not stopped.wait(0.1):
            events += 1
            now = time.time()
            metrics_page.say(metrics_text.gateway(now, events=events), metrics_text.engine(now))

    metrics_page.say(metrics_text.gateway(time.time()), metrics_text.engine(time.time()))
    thread = threading.Thread(target=report)
    thread.start()
    run_a_fleet(metrics_page.port)
    yield metrics_page
    stopped.set()
    thread.join()


@pytest.mark.usefixtures("fleet")
def test_one_table_is_printed_if_the_output_is_not_a_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["top", "--interval", "0.3"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.startswith("demo at http://127.0.0.1:8000  ")
    assert "numbers 0 s old, rates over the last " in out
    row = next(line.split() for line in out.splitlines() if line.startswith("coder  "))
    assert row[:5] == ["coder", "1/1", "3", "1", "2"]
    assert row[7] == "80%"


@pytest.mark.usefixtures("fleet")
def test_metrics_are_read_even_if_the_interval_is_long(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(screen, "REPORT_S", 0.3)
    assert cli.main(["top", "--once", "--interval", "3600"]) == 0
    assert "rates over the last " in capsys.readouterr().out


@pytest.mark.usefixtures("fleet")
def test_json_has_every_number(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["top", "--json", "--interval", "0.3", "--fleet", "demo"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["title"] == "demo at http://127.0.0.1:8000"
    assert printed["models"][0]["cached_share"] == pytest.approx(0.8)
    assert printed["models"][0]["slo"]["ttft"]["objective"] == 0.95
    assert printed["engines"][0]["state"] == "ready"
    assert printed["problems"] == []


def test_an_address_of_another_machine_needs_no_fleet_here(
    fleet: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in fleets.state_directory().glob("*.json"):
        path.unlink()
    assert cli.main(["top", "--once", "--interval", "0.3", "--url", fleet.url]) == 0
    assert capsys.readouterr().out.startswith(f"fleet at {fleet.url}")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "you have no running fleet on this machine. Start one with `qwenfleet serve`."),
        (["--url", "x:1"], "'x:1' is not a metrics address. Write it like"),
        (["--url", "http://x", "--port", "1"], "--port cannot be used with --url"),
    ],
)
def test_an_unreadable_address_is_one_sentence(
    capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str
) -> None:
    assert cli.main(["top", *arguments]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"qwenfleet: {sentence}")
    assert err.count("\n") == 1


def test_an_unknown_fleet_name_is_refused_with_the_known_names(
    capsys: pytest.CaptureFixture[str],
) -> None:
    run_a_fleet(7)
    assert cli.main(["top", "--fleet", "other"]) == 1
    printed = "you have no running fleet called 'other'. Running: 'demo' at http://127.0.0.1:8000."
    assert capsys.readouterr().err == f"qwenfleet: {printed}\n"


def test_an_address_that_does_not_answer_is_one_sentence(
    capsys: pytest.CaptureFixture[str], metrics_page: Any
) -> None:
    (port,) = free_ports(1, "127.0.0.1")
    run_a_fleet(port)
    assert cli.main(["top"]) == 1
    assert f"127.0.0.1:{port}/metrics refuses the connection" in capsys.readouterr().err
    metrics_page.status = 404
    assert cli.main(["top", "--url", metrics_page.url]) == 1
    assert "answers with status 404" in capsys.readouterr().err


def test_a_starting_fleet_is_waited_for_and_an_address_without_a_fleet_is_not(
    capsys: pytest.CaptureFixture[str], metrics_page: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(screen, "PATIENCE_S", 1.5)
    metrics_page.say()
    run_a_fleet(metrics_page.port)
    for options, least_s in ((["--url", metrics_page.url], 0.0), ([], 1.5)):
        began_at = time.monotonic()
        assert cli.main(["top", "--once", "--interval", "0.2", *options]) == 1
        took_s = time.monotonic() - began_at
        assert took_s >= least_s
        assert least_s or took_s < 1.5
        assert "has no metrics from a fleet's processes" in capsys.readouterr().err


class Terminal:
    """`qwenfleet top` in its own terminal."""

    def __init__(self, *arguments: str) -> None:
        self._ours, theirs = pty.openpty()
        environment = os.environ | {"TERM": "xterm", "COLUMNS": "120", "LINES": "40"}
        self.process = subprocess.Popen(
            [*PROGRAM, *arguments],
            cwd=ROOT,
            env=environment,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        )
        os.close(theirs)
        self.printed = ""

    def read_until(self, text: str, timeout_s: float = 30) -> None:
        give_up_at = time.monotonic() + timeout_s
        self.printed = ""
        while text not in self.printed:
            assert time.monotonic() < give_up_at, self.printed
            self._read()

    def end(self, number: int) -> int:
        self.process.send_signal(number)
        while self._read():
            continue
        return self.process.wait(20)

    def _read(self) -> bool:
        if select.select([self._ours], [], [], 0.5)[0]:
            try:
                data = os.read(self._ours, 65536)
            except OSError:  # closed at the other end
                data = b""
            self.printed += data.decode(errors="replace")
            return bool(data)
        return self.process.poll() is None

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._ours)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_survives_the_end_of_the_fleet_and_exits_without_a_stack_trace(
    fleet: Any, number: int
) -> None:
    terminal = Terminal()
    try:
        terminal.read_until("1 completed")
        fleet.status = 503
        terminal.read_until("answers with status 503")
        terminal.read_until("no data now; retrying")
        assert "completed" not in terminal.printed
        fleet.status = 200
        terminal.read_until("completed")
        for path in fleets.state_directory().glob("*.json"):
            path.unlink()
        terminal.read_until("you have no running fleet on this machine")
        run_a_fleet(fleet.port, "again")
        terminal.read_until("again at http://127.0.0.1:8000")
        assert terminal.end(number) == 0
        assert "Traceback" not in terminal.printed
        assert "\x1b[?1049l" in terminal.printed  # the screen is as it was
    finally:
        terminal.close()


def test_it_starts_quickly_and_without_ray(fleet: Any) -> None:
    code = (
        "import sys, time; from qwenfleet.cli import __main__ as cli\n"
        f"cli.main(['top', '--once', '--interval', '0.3', '--url', {fleet.url!r}])\n"
        "loaded = sorted({'ray', 'vllm', 'torch', 'pandas', 'kubernetes'} & set(sys.modules))\n"
        "sys.stderr.write(repr((loaded, time.process_time() < 2)))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert answer.stderr == "([], True)"
