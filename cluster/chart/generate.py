"""`python -m qwenfleet.cluster.chart.generate`: writes every file that is derived from code.

From the settings' own types come the chart's `values.schema.json`, from the planner's catalog its
`files/catalog.json`, from the comments of `values.yaml` the table in its README; from the declared
metrics, alerts and dashboards the table of metrics, the rules, the index of runbooks and the
dashboards' JSON.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import yaml

from qwenfleet.cluster.alerts import rule_file
from qwenfleet.cluster.chart import values as chart_values
from qwenfleet.cluster.hardware.accelerators import ACCELERATORS
from qwenfleet.cluster.metrics import CLOSED, METRICS
from qwenfleet.cluster.models.catalog import CATALOG

ROOT: Final = Path(__file__).resolve().parents[2]
CHART_FOLDER: Final = "helm/qwenfleet"
DASHBOARD_FOLDER: Final = f"{CHART_FOLDER}/files/dashboards"
KEY: Final = re.compile(r"( *)([A-Za-z_]\w*):")
PLACEHOLDER: Final = re.compile(r"{{.*?}}")
HEADER: Final = "# Written by `python -m qwenfleet.cluster.chart.generate`.\n"


def catalog() -> dict[str, Any]:
    """What the chart's arithmetic needs: widths and context of models, vendor of accelerators."""
    models = {
        model.short_name: {
            "context": model.geometry.max_context_tokens,
            "expertWidth": model.geometry.moe_intermediate_size,
            "block": max(model.geometry.quantization.block) if model.geometry.quantization else 0,
        }
        for model in CATALOG
    }
    accelerators = {
        name: {
            "vendor": accelerator.vendor.value,
            "nodeLabel": accelerator.vendor.node_label,
            "products": list(accelerator.node_labels),
        }
        for accelerator in ACCELERATORS
        for name in accelerator.ray_names
    }
    return {"models": models, "accelerators": accelerators}


def values_table(text: str) -> str:
    """The table in the chart's README: the values in `text`, a YAML file with a `# --` comment at
    each key that is explained."""
    values = yaml.safe_load(text)
    rows = ["| value | default | what it says |", "|---|---|---|"]
    for path, comment in comments(text):
        default: Any = values
        for part in path:
            default = default[part]
        rows.append(f"| `{'.'.join(path)}` | `{json.dumps(default)}` | {comment} |")
    return "\n".join(rows) + "\n"


def comments(text: str) -> Iterator[tuple[tuple[str, ...], str]]:
    """Each key with a `# --` comment right above it: its path, and the comment."""
    path: list[tuple[int, str]] = []
    said: list[str] = []
    for line in text.splitlines():
        found = KEY.match(line)
        if line.lstrip().startswith("#"):
            said.append(line.strip().removeprefix("# -- ").removeprefix("# "))
        elif found is not None:
            depth = len(found[1])
            path = [*(entry for entry in path if entry[0] < depth), (depth, found[2])]
            if said:
                yield tuple(name for _, name in path), " ".join(said).replace("|", "\\|")
            said = []


def metrics_table() -> str:
    """The table of metrics, and the values of their labels."""
    rows = ["| metric | kind | labels | meaning |", "|---|---|---|---|"]
    for metric in METRICS.values():
        labels = ", ".join(metric.labels)
        rows.append(f"| `{metric.name}` | {metric.kind} | {labels} | {metric.help} |")
    rows += ["", "| label | values |", "|---|---|"]
    rows += [f"| {label} | {', '.join(values)} |" for label, values in CLOSED.items()]
    return "\n".join(rows) + "\n"


def runbooks_table() -> str:
    """The runbooks' index: each alert, how urgent it is, and in one sentence what it says."""
    rows = ["| alert | severity | it says |", "|---|---|---|"]
    for name in dict.fromkeys(alert.name for alert in rule_file.alerts()):
        of_name = [alert for alert in rule_file.alerts() if alert.name == name]
        severities = ", ".join(dict.fromkeys(alert.severity for alert in of_name))
        summary = PLACEHOLDER.sub("…", of_name[0].summary)
        rows.append(f"| [{name}]({name}.md) | {severities} | {summary} |")
    return "\n".join(rows) + "\n"


def generated(root: Path = ROOT) -> dict[Path, str]:
    """Every generated file with the text that it should have."""
    chart = root / CHART_FOLDER
    values = (chart / "values.yaml").read_text(encoding="utf-8")
    return {
        root / "README.md": _with_table(root / "README.md", "metrics", metrics_table()),
        root / "helm" / "runbooks" / "README.md": _with_table(
            root / "helm" / "runbooks" / "README.md", "runbooks", runbooks_table()
        ),
        chart / "README.md": _with_table(chart / "README.md", "values", values_table(values)),
        chart / "values.schema.json": json.dumps(chart_values.schema(), indent=1) + "\n",
        chart / "files" / "catalog.json": json.dumps(catalog(), indent=1) + "\n",
        chart / "files" / "rules.yaml": HEADER + rule_file.rules(),
        **dashboard_files(root),
    }


def _with_table(page: Path, name: str, rows: str) -> str:
    """The page's text with these rows between the comments `name` and `/name`."""
    between = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    text = page.read_text(encoding="utf-8")
    return between.sub(lambda found: found[1] + rows + found[2], text)


def dashboard_files(root: Path = ROOT) -> dict[Path, str]:
    """Grafana's dashboards. Needs grafana-foundation-sdk, which only developers have."""
    from qwenfleet.cluster.dashboards.grafana import DASHBOARDS, render

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
