"""What Prometheus reads next to a fleet of this machine: configuration, rules and target."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Final

import yaml

RUNBOOKS: Final = "helm/runbooks"
"""Where this project's repository has a page for each alert."""
RUNBOOKS_URL: Final = "RUNBOOKS_URL"
"""What the rules have in place of an address that only an installation knows."""
SCRAPE: Final = "2s"
EVALUATE: Final = "5s"
"""Between two evaluations; the rules' own intervals are for a cluster."""


def configuration() -> str:
    """Prometheus' own file. The target is in another, which it watches: a fleet that starts again
    has another port, and what was scraped before is kept."""
    tree = {
        "global": {
            "scrape_interval": SCRAPE,
            "scrape_timeout": SCRAPE,
            "evaluation_interval": EVALUATE,
        },
        "rule_files": ["rules.yaml"],
        "scrape_configs": [
            {
                "job_name": "qwenfleet",
                "file_sd_configs": [{"files": ["targets.json"], "refresh_interval": "5s"}],
            }
        ],
    }
    return yaml.safe_dump(tree, sort_keys=False)


def targets(metrics_port: int) -> str:
    return json.dumps([{"targets": [f"127.0.0.1:{metrics_port}"]}])


def write(directory: Path, rules: str) -> None:
    """All but the target. `rules` is a rule file as the chart's, whose alerts name runbooks."""
    text = rules.replace(RUNBOOKS_URL, RUNBOOKS)
    (directory / "rules.yaml").write_text(text, encoding="utf-8")
    (directory / "prometheus.yml").write_text(configuration(), encoding="utf-8")


def point_to(directory: Path, metrics_port: int) -> None:
    """Let Prometheus scrape this port from now on; it never reads a half-written file."""
    new = directory / "targets.json.new"
    new.write_text(targets(metrics_port), encoding="utf-8")
    os.replace(new, directory / "targets.json")
