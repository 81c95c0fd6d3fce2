"""Live numbers of a fleet as a picture for a terminal.

External text becomes a `rich.text.Text`, which does not interpret markup such as `[red]`. Its
control characters, which a terminal would execute, are escaped.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from qwenfleet.cluster.labels import EngineState, Outcome
from qwenfleet.cluster.live.terminal import Block, fit, grid, rows_of
from qwenfleet.cluster.live.view import EngineView, FleetView, Latency, ModelView, SloEvents

GOOD: Final = frozenset({Outcome.COMPLETED})
NEUTRAL: Final = frozenset(
    {Outcome.REFUSED, Outcome.NO_KEY, Outcome.WRONG_KEY, Outcome.DISCONNECTED}
)
"""Outcomes that the client caused."""
STATES: Final[Mapping[str, str]] = {
    EngineState.READY: "green",
    EngineState.STARTING: "yellow",
    EngineState.DRAINING: "yellow",
}

MODELS: Final = (
    "MODEL", "READY", "RUNNING", "WAITING", "MOVING", "REQ/S", "IN/S", "CACHED", "OUT/S",
)  # fmt: skip
LATENCIES: Final = (
    "MODEL", "TTFT P50", "P90", "ITL P50", "P90", "ANSWERED", "TTFT OK", "ITL OK",
)  # fmt: skip
ENGINES: Final = ("ENGINE", "MODEL", "STATE", "RUNNING", "WAITING", "KV")


def printable(text: str) -> str:
    """Text with control characters escaped, as in a Python literal."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


@dataclass(frozen=True)
class Notice:
    """A line below the title."""

    text: str
    is_bad: bool
    key: str = ""
    """Identifies the notice while numbers in its text change; empty if they do not."""
    is_alert: bool = False


class FleetTable:
    """One reading, fitted to the width and height of a terminal."""

    def __init__(self, view: FleetView | None, head: str, notices: Sequence[Notice] = ()) -> None:
        self._view = view
        self._head = head
        self._notices = notices

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = options.max_width
        yield from fit(
            [
                Block(rows_of(block.lines, console, width), block.is_optional)
                for block in self._blocks(width)
            ],
            options.height,
        )

    def _blocks(self, width: int) -> Iterator[Block]:
        yield Block([Text(printable(self._head), style="bold")])
        for notice in self._notices:
            style = "bold red" if notice.is_bad else ""
            yield Block([Text(printable(notice.text), style=style)])
        if self._view is not None:
            yield from _parts(self._view, width)


def age(view: FleetView) -> str:
    """Age of the numbers, and the time that rates cover."""
    if view.age_s is None:
        return "no reports yet"
    youngest, oldest = (f"{seconds:.0f}" for seconds in view.age_s)
    ages = f"{youngest} s old" if youngest == oldest else f"{youngest} to {oldest} s old"
    rates = f"over the last {view.span_s:.0f} s" if view.span_s else "unknown until the next report"
    return f"numbers {ages}, rates {rates}"


def _parts(view: FleetView, width: int) -> Iterator[Block]:
    summary = f"{age(view)}; {view.gateways} gateway{'s' * (view.gateways != 1)}"
    notes = [Text(printable(f"note: {note}"), style="yellow") for note in view.notes]
    yield Block([Text(summary), *notes])
    if view.models:
        models = [model for model in view.models if not model.is_unknown]
        rows = [_model_row(model) for model in models]
        yield Block([Text(), *grid(MODELS, rows, width)] if rows else [Text()])
        rows = [_latency_row(model) for model in models]
        yield Block([Text(), *grid(LATENCIES, rows, width)] if rows else [], is_optional=True)
        yield Block(list(_events(view.models)))
    if view.engines:
        rows = [_engine_row(engine) for engine in view.engines]
        yield Block([Text(), *grid(ENGINES, rows, width)])


def _model_row(model: ModelView) -> list[Text]:
    is_up = model.ready > 0
    return [
        Text(printable(model.id)),
        Text(f"{model.ready}/{model.engines}", style="green" if is_up else "bold red"),
        Text(_count(model.running)),
        Text(_count(model.waiting)),
        Text(_count(model.moving), style="yellow" if model.moving else ""),
        Text(_rate(model.requests_per_s)),
        Text(_rate(model.prompt_tokens_per_s)),
        Text("-" if model.cached_share is None else f"{model.cached_share:.0%}"),
        Text(_rate(model.output_tokens_per_s)),
    ]


def _latency_row(model: ModelView) -> list[Text]:
    return [
        Text(printable(model.id)),
        *_latency(model.ttft),
        *_latency(model.inter_token),
        *(_verdict(model.slo.get(slo)) for slo in ("availability", "ttft", "inter_token")),
    ]


def _engine_row(engine: EngineView) -> list[Text]:
    state, style = engine.state, STATES.get(engine.state, "bold red")
    if engine.is_silent:
        state, style = f"{state}? silent for {engine.age_s:.0f} s", "bold red"
    return [
        Text(printable(engine.id)),
        Text(printable(engine.model)),
        Text(printable(state), style=style),
        Text(_count(engine.running)),
        Text(_count(engine.waiting)),
        Text(f"{engine.kv_usage:.0%}"),
    ]


def _events(models: Iterable[ModelView]) -> Iterator[Text]:
    """Ended requests and failures of each model; models without any are left out."""
    for model in models:
        line = Text(overflow="fold")
        for outcome, number in model.outcomes.items():
            style = "green" if outcome in GOOD else "" if outcome in NEUTRAL else "bold red"
            line.append(", " if line.plain else "").append(
                f"{_count(number)} {outcome}", style=style
            )
        for what, by, style in (
            ("rejected", model.rejections, ""),
            ("resumed", model.resumes, "yellow"),
            ("engines lost", model.losses, "yellow"),
        ):
            if by:
                causes = ", ".join(f"{_count(number)} {cause}" for cause, number in by.items())
                line.append("; " if line.plain else "")
                line.append(f"{what}: {causes}", style=style)
        if line.plain:
            head = "no model" if model.is_unknown else printable(model.id)
            yield Text(f"{head}: ", overflow="fold").append_text(line)


def _latency(latency: Latency) -> tuple[Text, Text]:
    return Text(_seconds(latency.p50_s)), Text(_seconds(latency.p90_s))


def _verdict(verdict: SloEvents | None) -> Text:
    """The share of good events, and the objective if it was missed."""
    if verdict is None or verdict.share is None:
        return Text("-")
    if verdict.is_broken:
        return Text(f"{_share(verdict.share)} < {_objective(verdict.objective)}", style="bold red")
    return Text(_share(verdict.share), style="green")


def _share(share: float) -> str:
    """A share in percent, never rounded up to 100%."""
    return "100%" if share == 1 else f"{int(share * 1000) / 10:.1f}%"


def _objective(objective: float | None) -> str:
    return f"{100 * (objective or 0):.4g}%"


def _count(number: float) -> str:
    return f"{number:,.0f}"


def _rate(rate: float | None) -> str:
    if rate is None:
        return "-"
    if rate == 0 or rate >= 100:
        return f"{rate:,.0f}"
    return f"{rate:.1f}" if rate >= 1 else f"{rate:.2f}"


def _seconds(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"
