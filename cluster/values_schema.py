"""`python -m qwenfleet.cluster.values_schema`: writes what the chart derives from code.

`values.schema.json` comes from the settings' own types, `files/catalog.json` from the planner's
catalog, and the table in the chart's README from the comments of `values.yaml`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import yaml

from qwenfleet.cluster import chart_values
from qwenfleet.cluster.accelerators import ACCELERATORS
from qwenfleet.cluster.catalog import CATALOG

CHART: Final = Path(__file__).resolve().parents[1] / "helm" / "qwenfleet"
TABLE: Final = re.compile(r"(<!-- values -->\n).*?(<!-- /values -->)", re.DOTALL)
KEY: Final = re.compile(r"( *)([A-Za-z_]\w*):")


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


def table(text: str) -> str:
    """The README's table of the values in `text`, a YAML file with a `# --` comment at each key
    that is explained."""
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


def generated(chart: Path = CHART) -> dict[Path, str]:
    """Every generated file with the text that it should have."""
    readme = (chart / "README.md").read_text(encoding="utf-8")
    rows = table((chart / "values.yaml").read_text(encoding="utf-8"))
    return {
        chart / "values.schema.json": json.dumps(chart_values.schema(), indent=1) + "\n",
        chart / "files" / "catalog.json": json.dumps(catalog(), indent=1) + "\n",
        chart / "README.md": TABLE.sub(lambda found: found[1] + rows + found[2], readme),
    }


def main() -> None:
    """Write them all."""
    for path, text in generated().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
