"""Generated files are up to date; these tests do not need helm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from qwenfleet.cluster.chart.generate import CHART_FOLDER, ROOT, comments, generated, values_table
from qwenfleet.cluster.chart.values import ChartValues, schema
from qwenfleet.cluster.config.fleet import FleetConfig

CHART = ROOT / CHART_FOLDER
VALUES = (CHART / "values.yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", list(generated()), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_generated_file_is_up_to_date(path: Path) -> None:
    wanted = generated()[path]
    command = "run python -m qwenfleet.cluster.chart.generate"
    assert path.read_text(encoding="utf-8") == wanted, command


def test_the_defaults_are_valid_values() -> None:
    values = yaml.safe_load(VALUES)
    values["fleet"]["auth"] = "none"  # added by the chart; required beyond loopback
    ChartValues.model_validate(values)


def test_every_value_has_a_default_in_values_yaml() -> None:
    values = yaml.safe_load(VALUES)
    assert values.keys() == ChartValues.model_fields.keys()
    for name, field in ChartValues.model_fields.items():
        section: Any = field.annotation
        required = {
            key for key, one in getattr(section, "model_fields", {}).items() if one.is_required()
        }
        assert required - {"models"} <= set(values[name] or ()), name


def test_the_values_are_closed_at_every_level() -> None:
    found = schema()
    assert found["additionalProperties"] is False
    for name, definition in found["$defs"].items():
        if definition.get("type") == "object":
            assert definition["additionalProperties"] is False, name


def test_the_tree_under_fleet_has_the_fields_of_a_fleet_file() -> None:
    definition = schema()["$defs"]["FleetConfig"]
    assert definition["properties"].keys() == FleetConfig.model_fields.keys()


def test_an_unknown_value_is_refused() -> None:
    values = yaml.safe_load(VALUES)
    values["fleet"]["auth"] = "none"
    values["image"]["name"] = "x"
    with pytest.raises(ValidationError, match=r"image\.name"):
        ChartValues.model_validate(values)


def test_every_key_or_its_parent_has_a_comment() -> None:
    explained = {path for path, _ in comments(VALUES)}

    def walk(tree: Any, path: tuple[str, ...]) -> None:
        if path in explained:
            return
        assert isinstance(tree, dict), f"{'.'.join(path)} has no comment"
        for key, value in tree.items():
            walk(value, (*path, key))

    walk(yaml.safe_load(VALUES), ())
    assert len(VALUES.splitlines()) <= 160


def test_the_table_shows_default_and_comment() -> None:
    text = "a:\n  # -- First | half,\n  # second half.\n  b: [1]\n# -- Other.\nc: x\n"
    assert values_table(text).splitlines()[2:] == [
        "| `a.b` | `[1]` | First \\| half, second half. |",
        '| `c` | `"x"` | Other. |',
    ]


def test_the_chart_has_the_project_s_version_and_ray_version() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'ray[serve]=={chart["annotations"]["qwenfleet.io/ray-version"]}"' in project
    assert f'version = "{chart["appVersion"]}"' in project
