"""`python -m qwenfleet.cluster.chart.generate`: writes every file that is derived from code.

* The types of the settings: the chart's `values.schema.json` and the table in
  docs/configuration.md.
* The planner's catalog: the chart's `files/catalog.json`.
* What the configuration and the planner refuse: the chart's `files/refusals.json`.
* The comments of `values.yaml`: the table in the chart's README.
* Metrics, alerts and dashboards: docs/metrics.md, the rules, the index of runbooks and the
  dashboards' JSON.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, get_args

import yaml
from pydantic.fields import FieldInfo

from qwenfleet.cluster.alerts import rule_file
from qwenfleet.cluster.chart import values as chart_values
from qwenfleet.cluster.chart.refusals import refusals
from qwenfleet.cluster.config.fleet import FleetConfig
from qwenfleet.cluster.config.section import Section
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
    """Return the inputs of the chart's checks: widths and contexts of models, accelerators."""
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
    """Return the table in the chart's README for `text`, a YAML file with a `# --` comment above
    each documented key."""
    values = yaml.safe_load(text)
    rows = ["| value | default | description |", "|---|---|---|"]
    for path, comment in comments(text):
        default: Any = values
        for part in path:
            default = default[part]
        rows.append(f"| `{'.'.join(path)}` | `{json.dumps(default)}` | {comment} |")
    return "\n".join(rows) + "\n"


def comments(text: str) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield the path and the comment of each key with a `# --` comment directly above it."""
    path: list[tuple[int, str]] = []
    comment: list[str] = []
    for line in text.splitlines():
        found = KEY.match(line)
        if line.lstrip().startswith("#"):
            comment.append(line.strip().removeprefix("# -- ").removeprefix("# "))
        elif found is not None:
            depth = len(found[1])
            path = [*(entry for entry in path if entry[0] < depth), (depth, found[2])]
            if comment:
                yield tuple(name for _, name in path), " ".join(comment).replace("|", "\\|")
            comment = []


def fields_table() -> str:
    """Return the table of settings in docs/configuration.md."""
    rows = ["| field | default | description |", "|---|---|---|"]
    for path, field in fields():
        meaning = (field.description or "").replace("|", "\\|")
        rows.append(f"| `{path}` | {_default(field)} | {meaning} |")
    return "\n".join(rows) + "\n"


def fields() -> Iterator[tuple[str, FieldInfo]]:
    """Yield every setting of a fleet with its path, section by section; each section once."""
    sections: dict[type[Section], str] = {FleetConfig: ""}
    for section, prefix in (queue := list(sections.items())):  # grows as sections are found
        for name, field in section.model_fields.items():
            yield f"{prefix}{name}", field
            inner = _section_in(field.annotation)
            if inner is not None and inner not in sections:
                is_list = str(field.annotation).startswith("tuple")
                sections[inner] = f"{prefix}{name}{'[]' if is_list else ''}."
                queue.append((inner, sections[inner]))


def _section_in(annotation: Any) -> type[Section] | None:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    return next(filter(None, map(_section_in, get_args(annotation))), None)


def _default(field: FieldInfo) -> str:
    """Return the default of a field; empty for a section, whose fields have their own defaults."""
    if field.is_required():
        return "required"
    if _section_in(field.annotation) is not None and field.default is not None:
        return ""
    return f"`{json.dumps(field.default)}`"


def metrics_table() -> str:
    """Return the tables of docs/metrics.md: the metrics, and the values of their labels."""
    rows = ["| metric | kind | labels | description |", "|---|---|---|---|"]
    for metric in METRICS.values():
        labels = ", ".join(metric.labels)
        rows.append(f"| `{metric.name}` | {metric.kind} | {labels} | {metric.help} |")
    rows += ["", "| label | values |", "|---|---|"]
    rows += [f"| {label} | {', '.join(values)} |" for label, values in CLOSED.items()]
    return "\n".join(rows) + "\n"


def runbooks_table() -> str:
    """Return the index of runbooks: name, severity and summary of each alert."""
    rows = ["| alert | severity | summary |", "|---|---|---|"]
    for name in dict.fromkeys(alert.name for alert in rule_file.alerts()):
        of_name = [alert for alert in rule_file.alerts() if alert.name == name]
        severities = ", ".join(dict.fromkeys(alert.severity for alert in of_name))
        summary = PLACEHOLDER.sub("…", of_name[0].summary)
        rows.append(f"| [{name}]({name}.md) | {severities} | {summary} |")
    return "\n".join(rows) + "\n"


def generated(root: Path = ROOT) -> dict[Path, str]:
    """Return the expected text of every generated file."""
    chart, docs = root / CHART_FOLDER, root / "docs"
    values = (chart / "values.yaml").read_text(encoding="utf-8")
    return {
        docs / "metrics.md": _with_table(docs / "metrics.md", "metrics", metrics_table()),
        docs / "configuration.md": _with_table(docs / "configuration.md", "fields", fields_table()),
        root / "helm" / "runbooks" / "README.md": _with_table(
            root / "helm" / "runbooks" / "README.md", "runbooks", runbooks_table()
        ),
        chart / "README.md": _with_table(chart / "README.md", "values", values_table(values)),
        chart / "values.schema.json": json.dumps(chart_values.schema(), indent=1) + "\n",
        chart / "files" / "catalog.json": json.dumps(catalog(), indent=1) + "\n",
        chart / "files" / "refusals.json": json.dumps(refusals(), separators=(",", ":")) + "\n",
        chart / "files" / "rules.yaml": HEADER + rule_file.rules(),
        **dashboard_files(root),
    }


def _with_table(page: Path, name: str, rows: str) -> str:
    """Return the page's text with these rows between the comments `name` and `/name`."""
    between = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    text = page.read_text(encoding="utf-8")
    return between.sub(lambda found: found[1] + rows + found[2], text)


def dashboard_files(root: Path = ROOT) -> dict[Path, str]:
    """Return the Grafana dashboards. Needs grafana-foundation-sdk, a development dependency."""
    from qwenfleet.cluster.dashboards.grafana import DASHBOARDS, render

    return {
        root / DASHBOARD_FOLDER / f"{dashboard.uid}.json": render(dashboard)
        for dashboard in DASHBOARDS
    }


def main() -> None:
    """Write all generated files."""
    for path, text in generated().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
