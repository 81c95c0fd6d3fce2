"""Files for the Prometheus of `qwenfleet watch`: configuration, rules and target."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Final

import yaml

from qwenfleet.cluster.alerts import rule_file

RUNBOOKS: Final = Path(rule_file.__file__).with_name("runbooks")
"""Directory with a page for each alert, in a wheel as in a checkout."""
RUNBOOKS_URL: Final = "RUNBOOKS_URL"
"""Placeholder in the rules for an address that only an installation knows."""
SCRAPE: Final = "2s"
EVALUATE: Final = "5s"
"""Time between two evaluations; the rules' own intervals are for a cluster."""


def configuration() -> str:
    """The configuration file. The target is in a separate file that Prometheus watches, because a
    restarted fleet has another port, and the data scraped so far should be kept."""
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
    """Write all files but the target. `rules` is the chart's rule file, with RUNBOOKS_URL."""
    text = rules.replace(RUNBOOKS_URL, str(RUNBOOKS))
    (directory / "rules.yaml").write_text(text, encoding="utf-8")
    (directory / "prometheus.yml").write_text(configuration(), encoding="utf-8")


def point_to(directory: Path, metrics_port: int) -> None:
    """Make Prometheus scrape this port; the file is replaced atomically."""
    new = directory / "targets.json.new"
    new.write_text(targets(metrics_port), encoding="utf-8")
    os.replace(new, directory / "targets.json")
