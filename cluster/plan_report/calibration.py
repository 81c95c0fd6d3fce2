"""Report of `qwenfleet plan --calibration`: the fit, each held-out error, what was left out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from rich.console import Console, RenderableType
from rich.table import Table

from qwenfleet.cluster.hardware.accelerators import Vendor
from qwenfleet.cluster.speed.calibration import COVERAGE, Fitted, HeldOut, median_error, series_of
from qwenfleet.cluster.speed.cost import Parameter
from qwenfleet.cluster.speed.measurements import LEFT_OUT, TTFT_POINTS
from qwenfleet.cluster.speed.prediction import ttft_factors

LEAST_COLUMNS: Final = 160
"""Width of the longest line."""
GROUPS: Final[tuple[tuple[str, Callable[[HeldOut], bool]], ...]] = (
    ("NVIDIA", lambda one: one.point.vendor is Vendor.NVIDIA),
    ("AMD", lambda one: one.point.vendor is Vendor.AMD),
    ("30B on NVIDIA", lambda one: _is(one, Vendor.NVIDIA, is_small=True)),
    ("480B on NVIDIA", lambda one: _is(one, Vendor.NVIDIA, is_small=False)),
    ("30B on AMD", lambda one: _is(one, Vendor.AMD, is_small=True)),
    ("480B on AMD", lambda one: _is(one, Vendor.AMD, is_small=False)),
    ("all", lambda one: True),
)


def show(model: Fitted, console: Console) -> None:
    """Print the report. A narrow terminal folds lines, which reads better than cut cells."""
    console.width = max(console.width, LEAST_COLUMNS)
    for part in (*_summary(model), _points(model), _parameters(model), _ttft()):
        console.print(part, highlight=False)
        console.print()
    console.print(_left_out(), highlight=False)


def as_json(model: Fitted) -> dict[str, Any]:
    """Return the report with stable keys; times in milliseconds, errors as shares."""
    return {
        "parameters": {parameter.value: model.values[parameter] for parameter in Parameter},
        "points": [_point_json(one) for one in model.held_out],
        "groups": [
            {
                "group": name,
                "points": len(held_out),
                "series": series_of(held_out),
                "median_error": median_error(held_out, by_series=False),
                "median_series_error": median_error(held_out, by_series=True),
            }
            for name, held_out in _groups(model)
        ],
        "spread": {vendor.value: model.spread(vendor) for vendor in Vendor},
        "ttft_factors": list(ttft_factors()),
        "left_out": [{"what": one.what, "reason": one.reason} for one in LEFT_OUT],
    }


def _table(*heads: str, right: Sequence[str] = ()) -> Table:
    found = Table(box=None, pad_edge=False, header_style="bold")
    for head in heads:
        found.add_column(head, justify="right" if head in right else "left", no_wrap=True)
    return found


def _summary(model: Fitted) -> tuple[RenderableType, ...]:
    numbers = ("n", "setups", "median error", "of an unknown setup")
    found = _table("time per token", *numbers, right=numbers)
    for name, held_out in _groups(model):
        count, series = len(held_out), series_of(held_out)
        errors = [_share(median_error(held_out, by_series=by)) for by in (False, True)]
        found.add_row(name, str(count), str(series), *errors)
    spreads = " or ".join(f"{model.spread(v):.2f} ({v.name})" for v in Vendor)
    return (
        "Each measurement was predicted by a fit that leaves it out, and by a fit that leaves out "
        "its whole setup (model, GPUs, layout).",
        found,
        f"A range is the prediction divided by, and multiplied by, {spreads}: {COVERAGE:.0%} of "
        "the measurements of unknown setups lie in it.",
    )


def _points(model: Fitted) -> Table:
    numbers = ("ms", "error", "setup")
    what = ("", "GPUs", "layout", "model", "load", "metric")
    found = _table(*what, *numbers, "source", right=numbers)
    for one in model.held_out:
        point, load = one.point, one.point.load
        geometry = point.shape.geometry
        found.add_row(
            point.label,
            f"{point.shape.layout.num_gpus} {point.shape.accelerator.name}",
            point.shape.layout.name,
            f"{int(geometry.total_params / 1e9)}B {'FP8' if geometry.quantization else 'BF16'}",
            f"{load.concurrency:g} x {load.prompt_tokens:g}/{load.output_tokens:g}",
            point.quantity.value,
            f"{point.measured_ms:.1f}",
            f"{one.error:+.0%}",
            f"{one.series_error:+.0%}",
            point.source,
        )
    return found


def _parameters(model: Fitted) -> Table:
    found = _table("fitted", "")
    for parameter in Parameter:
        value = model.values[parameter]
        is_time = parameter.is_time
        text = f"{value * 1e6:.0f} µs per layer" if is_time else f"{1 / value:.0%} of data sheet"
        found.add_row(parameter.value, text)
    return found


def _ttft() -> str:
    low, high = ttft_factors()
    return (
        f"Time to first token: n = {len(TTFT_POINTS)}, too few to estimate an error. Measured "
        f"times were {low:.2f} to {high:.2f} times the prediction, and ranges are that wide."
    )


def _left_out() -> str:
    return "\n".join(["Left out:", *(f"- {one.what}: {one.reason}." for one in LEFT_OUT)])


def _groups(model: Fitted) -> list[tuple[str, list[HeldOut]]]:
    return [(name, [one for one in model.held_out if is_in(one)]) for name, is_in in GROUPS]


def _is(one: HeldOut, vendor: Vendor, *, is_small: bool) -> bool:
    is_below = one.point.shape.geometry.total_params < 100e9
    return one.point.vendor is vendor and is_below is is_small


def _share(error: float | None) -> str:
    return "too few" if error is None else f"{error:.1%}"


def _point_json(one: HeldOut) -> dict[str, Any]:
    point = one.point
    return {
        "label": point.label,
        "series": point.series,
        "source": point.source,
        "accelerator": point.shape.accelerator.name,
        "layout": point.shape.layout.name,
        "quantity": point.quantity.value,
        "measured_ms": point.measured_ms,
        "without_point_ms": one.without_point_ms,
        "without_series_ms": one.without_series_ms,
    }
