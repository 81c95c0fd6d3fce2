"""Renders the dashboards as Grafana JSON; grafana-foundation-sdk is a development dependency.

The SDK has the types of Grafana 10.1; later versions of Grafana migrate them.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from qwenfleet.cluster.dashboards.capacity import CAPACITY
from qwenfleet.cluster.dashboards.engines import ENGINES_PAGE
from qwenfleet.cluster.dashboards.gateway import GATEWAY_PAGE
from qwenfleet.cluster.dashboards.model import MODEL_PAGE
from qwenfleet.cluster.dashboards.overview import OVERVIEW
from qwenfleet.cluster.dashboards.panels import GRID, Dashboard, Panel
from qwenfleet.cluster.metrics import BUILD_INFO, CLOSED, ENGINE_STATE, SLO_OBJECTIVE

if TYPE_CHECKING:
    from grafana_foundation_sdk.models.dashboard import DataSourceRef

DASHBOARDS: Final = (OVERVIEW, MODEL_PAGE, ENGINES_PAGE, GATEWAY_PAGE, CAPACITY)
RUNBOOKS: Final = "RUNBOOKS_URL/"
"""Placeholder that the chart replaces with the URL of the runbooks."""
STATE_COLORS: Final = ("blue", "green", "red", "orange")
"""Colors, in the order of the states."""
INTERVALS: Final = "1m,2m,5m,15m,1h,6h"


def render(dashboard: Dashboard) -> str:
    """Return the JSON for Grafana; the output is deterministic."""
    from grafana_foundation_sdk.cog.encoder import JSONEncoder

    return json.dumps(_build(dashboard), cls=JSONEncoder, indent=2, sort_keys=True) + "\n"


def _build(dashboard: Dashboard) -> Any:
    from grafana_foundation_sdk.builders import dashboard as sdk
    from grafana_foundation_sdk.models import dashboard as models

    page = (
        sdk.Dashboard(dashboard.title)
        .uid(dashboard.uid)
        .description(dashboard.description)
        .tags(["qwenfleet"])
        .time("now-1h", "now")
        .refresh("30s")
        .timezone("browser")
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .readonly()
        .variables(_variables(dashboard.has_deployments))
        .links(_links(dashboard))
    )
    number = 0
    for row in dashboard.rows:
        number += 1
        page.with_row(sdk.Row(row.title).id(number))
        for panel in row.panels:
            number += 1
            page.with_panel(_panel(panel).id(number))
    return page.build()


def _source() -> DataSourceRef:
    from grafana_foundation_sdk.models.dashboard import DataSourceRef

    return DataSourceRef(type_val="prometheus", uid="${datasource}")


def _links(dashboard: Dashboard) -> list[Any]:
    """Return links to the other dashboards, with variables and time range, and to the runbooks."""
    from grafana_foundation_sdk.builders.dashboard import DashboardLink
    from grafana_foundation_sdk.models.dashboard import DashboardLinkType

    links = [
        DashboardLink(other.title.partition(" / ")[2])
        .type(DashboardLinkType.LINK)
        .url(f"/d/{other.uid}")
        .tooltip(other.description)
        .icon("dashboard")
        .include_vars(True)
        .keep_time(True)
        for other in DASHBOARDS
        if other.uid != dashboard.uid
    ]
    runbooks = DashboardLink("Runbooks").type(DashboardLinkType.LINK).url(RUNBOOKS)
    return [*links, runbooks.icon("doc").target_blank(True).tooltip("What to do on each alert")]


def _variables(has_deployments: bool) -> list[Any]:
    """Return the variables: source, fleet, models, window and, if asked for, deployments."""
    from grafana_foundation_sdk.builders import dashboard as sdk
    from grafana_foundation_sdk.models.dashboard import VariableOption

    window = VariableOption(selected=True, text="2m", value="2m")
    fleet = f"label_values({BUILD_INFO.exported}, fleet)"
    model = f'label_values({SLO_OBJECTIVE.exported}{{fleet="$fleet"}}, model)'
    deployment = f'label_values({ENGINE_STATE.exported}{{fleet="$fleet"}}, deployment)'
    variables: list[Any] = [
        sdk.DatasourceVariable("datasource").label("Source").type("prometheus"),
        _query_variable("fleet", "Fleet", fleet),
        _choice("model", "Model", model),
        sdk.IntervalVariable("interval").label("Window").values(INTERVALS).current(window),
    ]
    if has_deployments:
        variables.insert(3, _choice("deployment", "Deployment", deployment))
    return variables


def _query_variable(name: str, label: str, query: str) -> Any:
    from grafana_foundation_sdk.builders.dashboard import QueryVariable
    from grafana_foundation_sdk.models.dashboard import VariableRefresh, VariableSort

    return (
        QueryVariable(name)
        .label(label)
        .datasource(_source())
        .query({"query": query, "refId": name})
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(VariableSort.ALPHABETICAL_ASC)
    )


def _choice(name: str, label: str, query: str) -> Any:
    """Return a multi-value variable with all values selected by default."""
    from grafana_foundation_sdk.models.dashboard import VariableOption

    everything = VariableOption(selected=True, text="All", value="$__all")
    variable = _query_variable(name, label, query).multi(True).include_all(True)
    return variable.all_value(".*").current(everything)


def _panel(panel: Panel) -> Any:
    """Build the panel of its kind, and set what all kinds share."""
    from grafana_foundation_sdk.builders import prometheus
    from grafana_foundation_sdk.builders.dashboard import ThresholdsConfig
    from grafana_foundation_sdk.models.dashboard import (
        GridPos,
        Threshold,
        ThresholdsMode,
    )

    built: Any = _KINDS[panel.kind](panel)
    built.title(panel.title).description(panel.description).unit(panel.unit)
    built.datasource(_source()).grid_pos(GridPos(w=min(panel.width, GRID), h=panel.height))
    steps = [Threshold(value, color) for value, color in panel.steps or ((None, "green"),)]
    built.thresholds(ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps))
    for letter, query in zip("ABCDEFGH", panel.queries, strict=False):
        target = prometheus.Dataquery().expr(query.expr).legend_format(query.legend)
        target = target.ref_id(letter).datasource(_source())
        is_table = panel.kind == "table"
        built.with_target(_as_table(target) if is_table else target.range())
    return built


def _as_table(target: Any) -> Any:
    from grafana_foundation_sdk.models.prometheus import PromQueryFormat

    return target.instant().format(PromQueryFormat.TABLE)


def _timeseries(panel: Panel) -> Any:
    from grafana_foundation_sdk.builders import common, timeseries
    from grafana_foundation_sdk.models.common import (
        LegendDisplayMode,
        LegendPlacement,
        SortOrder,
        StackingMode,
        TooltipDisplayMode,
        VisibilityMode,
    )

    legend = common.VizLegendOptions().show_legend(True).calcs(["lastNotNull"])
    legend.placement(LegendPlacement.BOTTOM).display_mode(LegendDisplayMode.LIST)
    tooltip = common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI).sort(SortOrder.DESCENDING)
    built = timeseries.Panel().legend(legend).tooltip(tooltip).axis_soft_min(0).line_width(1)
    built.show_points(VisibilityMode.NEVER).fill_opacity(60 if panel.is_stacked else 8)
    if panel.is_stacked:
        built.stacking(common.StackingConfig().mode(StackingMode.NORMAL).group("A"))
    if panel.max is not None:
        built.max(panel.max)
    return built


def _stat(panel: Panel) -> Any:
    from grafana_foundation_sdk.builders import common, stat
    from grafana_foundation_sdk.models.common import (
        BigValueColorMode,
        BigValueGraphMode,
        BigValueTextMode,
    )

    last = common.ReduceDataOptions().calcs(["lastNotNull"]).values(False)
    built = stat.Panel().reduce_options(last).text_mode(BigValueTextMode.VALUE_AND_NAME)
    return built.color_mode(BigValueColorMode.VALUE).graph_mode(BigValueGraphMode.NONE)


def _table(panel: Panel) -> Any:
    """Build a table panel: Grafana groups Prometheus's rows into a matrix."""
    from grafana_foundation_sdk.builders import table
    from grafana_foundation_sdk.models.dashboard import DataTransformerConfig

    options = {"rowField": panel.row, "columnField": panel.column, "valueField": "Value"}
    matrix = DataTransformerConfig(id_val="groupingToMatrix", options=options)
    return table.Panel().with_transformation(matrix)


def _states(panel: Panel) -> Any:
    from grafana_foundation_sdk.builders import statetimeline
    from grafana_foundation_sdk.models.common import VisibilityMode
    from grafana_foundation_sdk.models.dashboard import ValueMap, ValueMappingResult

    options = {
        str(number): ValueMappingResult(text=state, color=color, index=number - 1)
        for number, (state, color) in enumerate(
            zip(CLOSED["state"], STATE_COLORS, strict=True), start=1
        )
    }
    built = statetimeline.Panel().mappings([ValueMap(options=options)])
    return built.show_value(VisibilityMode.NEVER).merge_values(True).row_height(0.8)


_KINDS: Final = {
    "timeseries": _timeseries,
    "stat": _stat,
    "table": _table,
    "states": _states,
}
