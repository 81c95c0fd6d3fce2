"""Files for the Prometheus of `qwenfleet watch`, and notices on its scrapes and alerts."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from qwenfleet.cluster.alerts import rule_file
from qwenfleet.cluster.errors import MachineError, MetricsError
from qwenfleet.cluster.live import prometheus, prometheus_files
from qwenfleet.cluster.live import watcher as watcher_module
from qwenfleet.cluster.live.prometheus import Prometheus
from qwenfleet.cluster.local.fleets import RunningFleet

NOW = 1795392600.0
"""2026-11-23T00:10:00Z"""


def fleet(metrics_port: int) -> RunningFleet:
    return RunningFleet(1, 0.0, "demo", "http://127.0.0.1:8000", "", "", metrics_port, ["coder"])


class Server(Prometheus):
    """A Prometheus with the answers that a test sets."""

    def __init__(
        self, tmp_path: Path, *, target: Any = None, alerts: Any = (), ends: bool = False
    ) -> None:
        code = "raise SystemExit(3)" if ends else "import time; time.sleep(60)"
        process = subprocess.Popen([sys.executable, "-c", code])
        if ends:
            process.wait(20)
        super().__init__(process, "http://127.0.0.1:9090", tmp_path / "log")
        object.__setattr__(self, "target", target)
        object.__setattr__(self, "found", alerts)

    def _ask(self, path: str) -> Any:
        target = self.__dict__["target"]
        if isinstance(target, MetricsError):
            raise target
        if "alerts" in path:
            return {"data": {"alerts": list(self.__dict__["found"])}}
        return {"data": {"activeTargets": [] if target is None else [target]}}


def target(**fields: str) -> dict[str, str]:
    return {
        "scrapeUrl": "http://127.0.0.1:7/metrics",
        "health": "up",
        "lastError": "",
        "lastScrape": "2026-11-23T00:09:58.123456789Z",
        **fields,
    }


def printed(server: Server) -> list[tuple[str, bool]]:
    try:
        return [(r.text, r.is_bad) for r in watcher_module.Watcher(server).notices(NOW)]
    finally:
        server.process.kill()
        server.process.wait()


def test_a_successful_scrape_is_shown_with_its_age(tmp_path: Path) -> None:
    assert printed(Server(tmp_path, target=target())) == [
        ("Prometheus at http://127.0.0.1:9090 scraped the fleet 2 s ago", False),
        ("no alert is firing", False),
    ]


@pytest.mark.parametrize(
    ("one", "sentence"),
    [
        (
            target(health="down", lastError="connection refused"),
            "cannot scrape http://127.0.0.1:7/metrics: connection refused. Check that the fleet",
        ),
        (target(lastScrape="2026-11-23T00:09:00Z"), "scraped the fleet 60 s ago"),
    ],
)
def test_a_failed_or_late_scrape_is_red(tmp_path: Path, one: Any, sentence: str) -> None:
    text, is_bad = printed(Server(tmp_path, target=one))[0]
    assert sentence in text
    assert is_bad


@pytest.mark.parametrize("one", [None, target(health="unknown", lastScrape="0001-01-01T00:00:00Z")])
def test_before_the_first_scrape_nothing_is_wrong(tmp_path: Path, one: Any) -> None:
    text, is_bad = printed(Server(tmp_path, target=one))[0]
    assert "yet" in text
    assert not is_bad


def test_firing_alerts_are_shown_first(tmp_path: Path) -> None:
    labels = {"alertname": "A", "model": "[red]"}
    pending = {"labels": labels, "state": "pending", "activeAt": "2026-11-23T00:09:59.5Z"}
    before = {**pending, "labels": {"alertname": "C"}, "activeAt": "2026-11-23T00:09:50Z"}
    firing = {
        "labels": {"alertname": "B", "severity": "ticket"},
        "state": "firing",
        "annotations": {"summary": "no engine of coder is ready", "runbook_url": "/r/B.md"},
    }
    server = Server(tmp_path, target=target(), alerts=[pending, before, firing])
    assert printed(server)[1:] == [
        ("firing (ticket): B: no engine of coder is ready; runbook: /r/B.md", True),
        ("pending: A (model [red])", False),
    ]


def test_a_prometheus_that_exited_or_hangs_is_reported(tmp_path: Path) -> None:
    (tmp_path / "log").write_text('ts=1 level=error err="disk full"\n\n')
    ((text, is_bad),) = printed(Server(tmp_path, ends=True))
    assert "Prometheus exited (status 3, last log line: disk full): alerts" in text
    assert is_bad
    hangs = MetricsError("http://127.0.0.1:9090", "does not answer (ReadTimeoutError)", "Wait.")
    ((text, is_bad),) = printed(Server(tmp_path, target=hangs))
    assert text == "Prometheus at http://127.0.0.1:9090 does not answer (ReadTimeoutError). Wait."


def test_the_lines_end_with_one_sentence_when_prometheus_exits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    watcher = watcher_module.Watcher(Server(tmp_path, ends=True))
    with pytest.raises(MachineError) as caught:
        watcher_module.as_lines(watcher, lambda: None, 0.1)
    assert str(caught.value).startswith("Prometheus exited (status 3): alerts are no longer known")
    assert "Run `qwenfleet watch` again" in caught.value.remedy
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("line", "printed"),
    [
        ('ts=1 caller=a.go:1 level=error err="disk full"', "disk full"),
        (r'level=error msg="Error loading" err="bad \"x\"."', 'Error loading: bad "x"'),
        ("level=warn msg=Stopping", "Stopping"),
        ("Try '/bin/ls --help' for more information.", "Try '/bin/ls --help' for more information"),
    ],
)
def test_the_message_of_a_log_line_is_extracted(line: str, printed: str) -> None:
    assert prometheus.log_message(line) == printed


def test_pending_alerts_are_not_shown_before_the_first_scrape(tmp_path: Path) -> None:
    absent = {"labels": {"alertname": "A"}, "state": "pending", "activeAt": "2026-11-23T00:09:50Z"}
    unknown = target(health="unknown", lastScrape="0001-01-01T00:00:00Z")
    assert printed(Server(tmp_path, target=unknown, alerts=[absent]))[1:] == [
        ("no alert is firing", False)
    ]


def test_prometheus_gets_the_charts_rules_with_pages_that_exist(tmp_path: Path) -> None:
    prometheus_files.write(tmp_path, rule_file.rules())
    text = (tmp_path / "rules.yaml").read_text()
    pages = re.findall(r"runbook_url: (.+)", text)
    assert len(pages) == len(rule_file.alerts())
    assert all(Path(page).is_absolute() and Path(page).is_file() for page in pages), pages
    assert "RUNBOOKS_URL" not in text
    tree = yaml.safe_load((tmp_path / "prometheus.yml").read_text())
    assert tree["rule_files"] == ["rules.yaml"]
    assert tree["scrape_configs"][0]["job_name"] == "qwenfleet"
    assert tree["global"]["scrape_interval"] == "2s"


def test_a_fleet_that_restarts_on_another_port_is_followed(tmp_path: Path) -> None:
    ports = iter([7, 7, 8])
    finder = watcher_module.FleetFinder(tmp_path, lambda port, name: fleet(next(ports)))
    for expected in ("127.0.0.1:7", "127.0.0.1:7", "127.0.0.1:8"):
        finder.find(None, None)
        assert json.loads((tmp_path / "targets.json").read_text()) == [{"targets": [expected]}]
