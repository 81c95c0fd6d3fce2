"""What Prometheus reads beside a fleet of this machine: configuration, rules and target."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Final

import yaml

ROOT: Final = Path(__file__).resolve().parents[1]
RULES: Final = ROOT / "helm" / "qwenfleet" / "files" / "rules.yaml"
"""Those of the chart, as they are."""
RUNBOOKS: Final = ROOT / "helm" / "runbooks"
RUNBOOKS_URL: Final = "RUNBOOKS_URL"
"""What the rules have in place of an address that only an installation knows."""
SCRAPE: Final = "2s"
EVALUATE: Final = "5s"
"""Between two evaluations; the rules' own intervals are for a cluster."""


def configuration(has_rules: bool) -> str:
    """Prometheus' own file. The target is in another, which it watches: a fleet that starts again
    has another port, and what was scraped before is kept."""
    tree = {
        "global": {
            "scrape_interval": SCRAPE,
            "scrape_timeout": SCRAPE,
            "evaluation_interval": EVALUATE,
        },
        "rule_files": ["rules.yaml"] if has_rules else [],
        "scrape_configs": [
            {
                "job_name": "qwenfleet",
                "file_sd_configs": [{"files": ["targets.json"], "refresh_interval": "5s"}],
            }
        ],
    }
    return yaml.safe_dump(tree, sort_keys=False)


def rules(text: str, runbooks: Path = RUNBOOKS) -> str:
    """The chart's rules, with the runbooks of this checkout."""
    return text.replace(RUNBOOKS_URL, str(runbooks))


def targets(metrics_port: int) -> str:
    return json.dumps([{"targets": [f"127.0.0.1:{metrics_port}"]}])


def write(directory: Path, source: Path = RULES) -> bool:
    """All but the target; the answer is whether there are rules."""
    has_rules = source.is_file()
    if has_rules:
        text = rules(source.read_text(encoding="utf-8"))
        (directory / "rules.yaml").write_text(text, encoding="utf-8")
    (directory / "prometheus.yml").write_text(configuration(has_rules), encoding="utf-8")
    return has_rules


def point_to(directory: Path, metrics_port: int) -> None:
    """Let Prometheus scrape this port from now on; it never reads a half-written file."""
    new = directory / "targets.json.new"
    new.write_text(targets(metrics_port), encoding="utf-8")
    os.replace(new, directory / "targets.json")
