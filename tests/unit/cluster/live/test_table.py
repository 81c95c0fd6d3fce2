"""The screen of `qwenfleet top`: any model name, any width."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from qwenfleet.cluster.live.table import FleetTable, Notice
from qwenfleet.cluster.live.view import EngineView, FleetView, Latency, ModelView, SloEvents


def model(name: str = "coder", **fields: object) -> ModelView:
    known = {
        "id": name,
        "ready": 1,
        "engines": 2,
        "running": 3.0,
        "waiting": 1.0,
        "moving": 0.0,
        "prompt_tokens_per_s": 1234.5,
        "cached_share": 0.875,
        "output_tokens_per_s": 0.25,
        "requests_per_s": 2.5,
        "ttft": Latency(0.25, 1.5),
        "inter_token": Latency(None, None),
        "slo": {"ttft": SloEvents(9, 1, 0.95), "availability": SloEvents(9999, 1, 0.99)},
        "outcomes": {"completed": 9.0, "engine_lost": 1.0},
        "rejections": {},
        "resumes": {"drained": 2.0},
        "losses": {"core_died": 1.0},
    }
    return ModelView(**(known | fields))  # type: ignore[arg-type]


def fleet(name: str = "coder", age_s: float = 1.0, notes: tuple[str, ...] = ()) -> FleetView:
    engine = EngineView("e1", name, "ready", 3, 1, 0.25, age_s)
    return FleetView("demo", (model(name),), (engine,), 1, (0.4, age_s), 58.0, notes)


def drawn(
    view: FleetView | None,
    width: int = 120,
    *notices: Notice,
    head: str = "demo",
    colour: bool = False,
) -> str:
    file = io.StringIO()
    console = Console(
        file=file, width=width, force_terminal=colour, color_system="standard" if colour else None
    )
    console.print(FleetTable(view, head, notices))
    return file.getvalue()


def test_a_row_has_the_numbers_of_a_model() -> None:
    reported = drawn(fleet())
    assert "numbers 0 to 1 s old, rates over the last 58 s; 1 gateway\n" in reported
    rows = {tuple(line.split()) for line in reported.splitlines()}
    assert ("coder", "1/2", "3", "1", "0", "2.5", "1,234", "88%", "0.25") in rows
    latencies = "coder 250 ms 1.5 s - - 99.9% 90.0% < 95% -"
    assert tuple(latencies.split()) in rows
    assert (
        "coder: 9 completed, 1 engine_lost; resumed: 2 drained; engines lost: 1 core_died"
        in reported
    )
    assert ("e1", "coder", "ready", "3", "1", "25%") in rows


def test_unknown_numbers_are_a_dash() -> None:
    unknown = model(
        prompt_tokens_per_s=None,
        cached_share=None,
        output_tokens_per_s=None,
        requests_per_s=None,
        outcomes={},
        rejections={},
        resumes={},
        losses={},
    )
    reported = drawn(FleetView("demo", (unknown,), (), 0, None, 0.0))
    assert "no reports yet; 0 gateways" in reported
    assert ["coder", "1/2", "3", "1", "0", "-", "-", "-", "-"] in [
        line.split() for line in reported.splitlines()
    ]


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("[red]x[/red]", "[red]x[/red]"),
        ("[/]", "[/]"),
        (":smile:", ":smile:"),
        ('odd "name" \\ {x}|$(y) é', 'odd "name" \\ {x}|$(y) é'),
        ("a\x1b[2Jb", "a\\x1b[2Jb"),
        ("a\nb\x07", "a\\nb\\x07"),
        ("a\u202eb", "a\\u202eb"),
    ],
)
@pytest.mark.parametrize("width", [40, 160])
def test_a_name_is_shown_as_it_is_and_cannot_control_the_terminal(
    name: str, shown: str, width: int
) -> None:
    reported = drawn(fleet(name, notes=(name,)), width, Notice(name, is_bad=True), head=name)
    assert reported.count(shown) >= 6
    assert "\x1b" not in reported
    assert "\x07" not in reported


@pytest.mark.parametrize("width", [1, 8, 20, 40, 71, 72, 80, 200])
def test_no_line_is_wider_than_the_terminal_and_nothing_is_cut(width: int) -> None:
    reported = drawn(
        fleet("a-model-with-a-long-name-of-its-own"), width, Notice("lost", is_bad=True)
    )
    assert all(len(line.rstrip()) <= width for line in reported.splitlines())
    if width != 1:
        together = "".join(reported.split())
        assert "1,234" in together
        assert "1core_died" in together


LONG = "Qwen/Qwen3-Coder-480B-A35B-Instruct-FP8"


def engines(number: int, name: str = LONG) -> FleetView:
    views = [EngineView(f"engine{n:02}", name, "ready", 3, 1, 0.5, 1.0) for n in range(number)]
    return FleetView("demo", (model(name),), tuple(views), 1, (0.4, 1.0), 58.0)


@pytest.mark.parametrize("width", [62, 72, 80, 100])
def test_the_models_name_has_its_own_line_if_the_table_is_too_wide(width: int) -> None:
    lines = drawn(engines(3), width).splitlines()
    at = lines.index(LONG)
    assert lines[at - 1].split()[0] == "READY"
    assert lines[at + 1].split() == ["1/2", "3", "1", "0", "2.5", "1,234", "88%", "0.25"]


@pytest.mark.parametrize("width", [20, 30, 40, 60, 72, 80, 200])
def test_no_engine_and_no_percentage_is_cut_at_any_width(width: int) -> None:
    words = drawn(engines(3), width).split()
    assert [word for word in words if word.startswith("engine0")] == [
        f"engine{n:02}" for n in range(3)
    ]
    assert words.count("50%") == 3
    assert "…" not in "".join(words)


def test_engines_of_a_model_share_the_line_of_its_name() -> None:
    *_, last = drawn(engines(5), 60).split("\n\n")
    assert last.split()[0] == "ENGINE"
    assert last.splitlines().count(LONG) == 1


def low(view: FleetView, height: int, width: int = 120) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    options = console.options.update(height=height)
    lines = console.render_lines(FleetTable(view, "demo"), options, pad=False)
    reported = "\n".join("".join(segment.text for segment in line).rstrip() for line in lines)
    return reported.rstrip().split("\n")  # rich fills the height up


@pytest.mark.parametrize("width", [30, 80, 120])
@pytest.mark.parametrize("height", [1, 2, 5, 9, 12, 15])
def test_a_small_terminal_shows_how_many_lines_are_hidden(height: int, width: int) -> None:
    every = [line for line in low(engines(20), 999, width) if line]
    shown = low(engines(20), height, width)
    assert len(shown) == height
    hidden = len(every) - len([line for line in shown[:-1] if line])
    assert shown[-1].startswith(f"… {hidden} more lines; make")
    assert not any("TTFT" in line for line in shown)


def test_a_tall_terminal_hides_nothing_and_latencies_are_hidden_before_engines() -> None:
    every = low(engines(2), 999)
    assert low(engines(2), len(every)) == every
    shown = low(engines(2), len(every) - 2)
    assert "TTFT P50" in "\n".join(every)
    assert "engine01" in "\n".join(shown)
    assert shown[-1] == "… 2 more lines; make the window taller"
    assert len(shown) <= len(every) - 2


def test_requests_without_a_model_are_one_line_and_not_a_model() -> None:
    unknown = model(
        "none",
        ready=0,
        engines=0,
        outcomes={"refused": 10.0},
        rejections={"model_not_found": 10.0},
        resumes={},
        losses={},
    )
    lines = drawn(FleetView("demo", (model(), unknown), (), 1, (0.4, 1.0), 58.0)).splitlines()
    assert [line for line in lines if "none" in line] == []
    assert "no model: 10 refused; rejected: 10 model_not_found" in lines
    alone = drawn(FleetView("demo", (unknown,), (), 1, (0.4, 1.0), 58.0))
    assert "MODEL" not in alone
    assert "no model: 10 refused" in alone


def test_a_silent_engine_and_a_missed_objective_are_red() -> None:
    assert "ready? silent for 17 s" in drawn(fleet(age_s=17.2))
    assert "\x1b[1;31m90.0% < 95%" in drawn(fleet(), colour=True)


def test_without_a_view_there_are_only_sentences() -> None:
    reported = drawn(None, 120, Notice("you have no running fleet on this machine", is_bad=True))
    assert reported.splitlines() == ["demo", "you have no running fleet on this machine"]
