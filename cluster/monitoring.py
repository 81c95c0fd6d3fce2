"""`python -m qwenfleet.cluster.monitoring`: writes what is derived from metrics, rules and the
declared dashboards."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, get_args

from pydantic.fields import FieldInfo

from qwenfleet.cluster import alert_rules
from qwenfleet.cluster.config import FleetConfig
from qwenfleet.cluster.metrics import CLOSED, METRICS
from qwenfleet.cluster.section import Section

ROOT: Final = Path(__file__).resolve().parents[1]
DASHBOARD_FOLDER: Final = "helm/qwenfleet/files/dashboards"
TABLE: Final = re.compile(r"(<!-- metrics -->\n).*?(<!-- /metrics -->)", re.DOTALL)
FIELDS: Final = re.compile(r"(<!-- fields -->\n).*?(<!-- /fields -->)", re.DOTALL)
RUNBOOKS: Final = re.compile(r"(<!-- runbooks -->\n).*?(<!-- /runbooks -->)", re.DOTALL)
PLACEHOLDER: Final = re.compile(r"{{.*?}}")
HEADER: Final = "# Written by `python -m qwenfleet.cluster.monitoring`.\n"


def metrics_table() -> str:
    """The table of metrics in docs/metrics.md, and the values of their labels."""
    rows = ["| metric | kind | labels | meaning |", "|---|---|---|---|"]
    for metric in METRICS.values():
        labels = ", ".join(metric.labels)
        rows.append(f"| `{metric.name}` | {metric.kind} | {labels} | {metric.help} |")
    rows += ["", "| label | values |", "|---|---|"]
    rows += [f"| {label} | {', '.join(values)} |" for label, values in CLOSED.items()]
    return "\n".join(rows) + "\n"


def fields_table() -> str:
    """The table of settings in docs/configuration.md: path, default and meaning of each."""
    rows = ["| field | default | meaning |", "|---|---|---|"]
    for path, field in fields():
        meaning = (field.description or "").replace("|", "\\|")
        rows.append(f"| `{path}` | {_default(field)} | {meaning} |")
    return "\n".join(rows) + "\n"


def fields() -> Iterator[tuple[str, FieldInfo]]:
    """Every setting of a fleet with its path, section by section; each section comes once."""
    sections: dict[type[Section], str] = {FleetConfig: ""}
    for section, prefix in (queue := list(sections.items())):
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
    """Nothing for a section, whose own fields say it."""
    if field.is_required():
        return "required"
    if _section_in(field.annotation) is not None and field.default is not None:
        return ""
    return f"`{json.dumps(field.default)}`"


def runbooks_table() -> str:
    """The runbooks' index: each alert, how urgent it is, and in one sentence what it says."""
    rows = ["| alert | severity | it says |", "|---|---|---|"]
    for name in dict.fromkeys(alert.name for alert in alert_rules.alerts()):
        of_name = [alert for alert in alert_rules.alerts() if alert.name == name]
        severities = ", ".join(dict.fromkeys(alert.severity for alert in of_name))
        summary = PLACEHOLDER.sub("…", of_name[0].summary)
        rows.append(f"| [{name}]({name}.md) | {severities} | {summary} |")
    return "\n".join(rows) + "\n"


def generated(root: Path = ROOT) -> dict[Path, str]:
    """Every generated file with the text that it should have."""
    docs = root / "docs"
    metrics = (docs / "metrics.md").read_text(encoding="utf-8")
    configuration = (docs / "configuration.md").read_text(encoding="utf-8")
    index = (root / "helm" / "runbooks" / "README.md").read_text(encoding="utf-8")
    return {
        docs / "metrics.md": TABLE.sub(
            lambda found: found[1] + metrics_table() + found[2], metrics
        ),
        docs / "configuration.md": FIELDS.sub(
            lambda found: found[1] + fields_table() + found[2], configuration
        ),
        root / "helm" / "runbooks" / "README.md": RUNBOOKS.sub(
            lambda found: found[1] + runbooks_table() + found[2], index
        ),
        root / "helm" / "qwenfleet" / "files" / "rules.yaml": HEADER + alert_rules.rules(),
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
