"""What `qwenfleet plan --calibration` says: the fit, each held-out error, what was left out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from qwenfleet.cluster.hardware.accelerators import Vendor
from qwenfleet.cluster.speed.calibration import COVERAGE, Fitted, HeldOut, median_error, series_of
from qwenfleet.cluster.speed.cost import Parameter
from qwenfleet.cluster.speed.measurements import LEFT_OUT, TTFT_POINTS
from qwenfleet.cluster.speed.prediction import ttft_factors

GROUPS: Final[tuple[tuple[str, Callable[[HeldOut], bool]], ...]] = (
    ("NVIDIA", lambda one: one.point.vendor is Vendor.NVIDIA),
    ("AMD", lambda one: one.point.vendor is Vendor.AMD),
    ("30B on NVIDIA", lambda one: _is(one, Vendor.NVIDIA, is_small=True)),
    ("480B on NVIDIA", lambda one: _is(one, Vendor.NVIDIA, is_small=False)),
    ("30B on AMD", lambda one: _is(one, Vendor.AMD, is_small=True)),
    ("480B on AMD", lambda one: _is(one, Vendor.AMD, is_small=False)),
    ("all", lambda one: True),
)


def text(model: Fitted) -> str:
    """For a person at a terminal."""
    return "\n\n".join([_summary(model), _points(model), _parameters(model), _ttft(), _left_out()])


def as_json(model: Fitted) -> dict[str, Any]:
    """Keys that stay; times in milliseconds, errors as shares."""
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


def table(rows: Sequence[Sequence[str]]) -> str:
    """Columns of equal width, the first row their heads."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return "\n".join(lines)


def _summary(model: Fitted) -> str:
    rows: list[tuple[str, ...]] = [
        ("time per token", "n", "set-ups", "median error", "of a set-up not known")
    ]
    for name, held_out in _groups(model):
        count, series = len(held_out), series_of(held_out)
        errors = [_share(median_error(held_out, by_series=by)) for by in (False, True)]
        rows.append((name, str(count), str(series), *errors))
    spreads = ", ".join(f"{model.spread(v):.2f} ({v.name})" for v in Vendor)
    return (
        "Each measurement was predicted by a fit without it, and by one without its whole set-up "
        "(model, GPUs, layout).\n\n"
        + table(rows)
        + f"\n\nA range is the prediction divided by and times {spreads}: {COVERAGE:.0%} of the "
        "measurements of set-ups not known lie in it."
    )


def _points(model: Fitted) -> str:
    rows = [("", "GPUs", "layout", "model", "load", "what", "ms", "error", "set-up", "source")]
    for one in model.held_out:
        point, load = one.point, one.point.load
        geometry = point.shape.geometry
        rows.append(
            (
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
        )
    return table(rows)


def _parameters(model: Fitted) -> str:
    rows = [("fitted", "")]
    for parameter in Parameter:
        value = model.values[parameter]
        said = f"{value * 1e6:.0f} µs a layer" if parameter.is_time else f"{1 / value:.0%} of paper"
        rows.append((parameter.value, said))
    return table(rows)


def _ttft() -> str:
    low, high = ttft_factors()
    return (
        f"Time to first token: n = {len(TTFT_POINTS)}, too few to say an error; measured was "
        f"{low:.2f} to {high:.2f} times the model, and ranges are as wide."
    )


def _left_out() -> str:
    return "\n".join(["Left out:", *(f"- {one.what}: {one.reason}." for one in LEFT_OUT)])


def _groups(model: Fitted) -> list[tuple[str, list[HeldOut]]]:
    return [(name, [one for one in model.held_out if has(one)]) for name, has in GROUPS]


def _is(one: HeldOut, vendor: Vendor, *, is_small: bool) -> bool:
    has_few = one.point.shape.geometry.total_params < 100e9
    return one.point.vendor is vendor and has_few is is_small


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
