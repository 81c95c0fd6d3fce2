"""`python -m qwenfleet.cluster.monitoring`: writes what is derived from the list of metrics and
from the declared dashboards."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from qwenfleet.cluster.metrics import CLOSED, METRICS

ROOT: Final = Path(__file__).resolve().parents[1]
DASHBOARD_FOLDER: Final = "helm/qwenfleet/files/dashboards"
TABLE: Final = re.compile(r"(<!-- metrics -->\n).*?(<!-- /metrics -->)", re.DOTALL)


def metrics_table() -> str:
    """README's table of metrics, and the values of their labels."""
    rows = ["| metric | kind | labels | meaning |", "|---|---|---|---|"]
    for metric in METRICS.values():
        labels = ", ".join(metric.labels)
        rows.append(f"| `{metric.name}` | {metric.kind} | {labels} | {metric.help} |")
    rows += ["", "| label | values |", "|---|---|"]
    rows += [f"| {label} | {', '.join(values)} |" for label, values in CLOSED.items()]
    return "\n".join(rows) + "\n"


def generated(root: Path = ROOT) -> dict[Path, str]:
    """Every generated file with the text that it should have."""
    readme = (root / "README.md").read_text(encoding="utf-8")
    return {
        root / "README.md": TABLE.sub(lambda found: found[1] + metrics_table() + found[2], readme),
        **dashboard_files(root),
    }


def dashboard_files(root: Path = ROOT) -> dict[Path, str]:
    """Grafana's dashboards. Needs grafana-foundation-sdk, which only developers have."""
    from qwenfleet.cluster.dashboards import DASHBOARDS, render

    return {
        root / DASHBOARD_FOLDER / f"{dashboard.uid}.json": render(dashboard)
        for dashboard in DASHBOARDS
    }


def main() -> None:
    """Write them all."""
    for path, text in generated().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
