"""Results as Markdown: what a server adds to vLLM's own figures, with its sign."""

from __future__ import annotations

from dataclasses import replace

from qwenfleet.loadtest import overhead_table
from qwenfleet.loadtest.cases import Case
from qwenfleet.loadtest.overhead import Results

VLLM = Case("vllm", True, 64, 8, 20.0, 1280.0, 10.0, 400.0, 500.0, 30.0, 0)
FLEET = replace(VLLM, server="fleet", requests_per_s=15.0, ttft_p50_ms=12.5, cpu_ms_per_request=28)


def tables(*cases: Case) -> list[list[list[str]]]:
    """The cells of each table's rows; the heading is the first row."""
    results = Results(cases, {"vllm": 12.4, "fleet": 99.6}, runs=3)
    *found, last = overhead_table.render(results).split("\n\n")
    assert last == "Medians of 3 runs. CPU without a request, ms per second: vllm 12, fleet 100."
    rows = [[row[2:-2].split(" | ") for row in table.splitlines()] for table in found]
    return [[heading, *body] for heading, _, *body in rows]


def test_a_row_has_both_values_the_ratio_and_what_is_added() -> None:
    ((heading, row),) = tables(VLLM, FLEET)
    assert list(zip(heading, row, strict=True)) == [
        ("answer", "streamed"),
        ("tokens", "64"),
        ("c", "8"),
        ("requests/s: vllm", "20.0"),
        ("fleet", "15.0"),
        ("ratio", "0.75"),
        ("TTFT p50, ms: vllm", "10.0"),
        ("fleet", "12.5"),
        ("added", "+2.5"),
        ("CPU, ms per request: vllm", "30.0"),
        ("fleet", "28.0"),
        ("added", "-2.0"),
        ("errors", "0"),
    ]


def test_every_line_of_a_table_has_as_many_cells() -> None:
    table = overhead_table.render(Results((VLLM, FLEET), {}, 1)).split("\n\n")[0]
    assert len({line.count("|") for line in table.splitlines()}) == 1


def test_rows_meet_the_baseline_of_their_own_load() -> None:
    whole = replace(VLLM, stream=False, requests_per_s=40.0)
    ((_, first, second),) = tables(whole, VLLM, FLEET, replace(FLEET, stream=False))
    assert (first[0], first[3], first[5]) == ("streamed", "20.0", "0.75")
    assert (second[0], second[3], second[5]) == ("whole", "40.0", "0.38")


def test_each_other_server_has_its_table() -> None:
    first, second = tables(VLLM, FLEET, replace(FLEET, server="smg", requests_per_s=30.0))
    assert (first[0][4], first[1][5]) == ("fleet", "0.75")
    assert (second[0][4], second[1][5]) == ("smg", "1.50")


def test_a_case_without_its_baseline_has_no_row() -> None:
    ((_, row),) = tables(VLLM, FLEET, replace(FLEET, concurrency=32))
    assert row[2] == "8"
    ((_,),) = tables(FLEET)


def test_what_is_unknown_is_a_dash() -> None:
    dead = replace(FLEET, requests_per_s=0.0, ttft_p50_ms=None, errors=9)
    ((_, row),) = tables(VLLM, dead)
    assert row[4:9] == ["0.0", "0.00", "10.0", "-", "-"]
    ((_, row),) = tables(replace(VLLM, requests_per_s=0.0, ttft_p50_ms=None, errors=2), dead)
    assert row[3:9] == ["0.0", "0.0", "-", "-", "-", "-"]
    assert row[-1] == "11"


def test_the_baseline_alone_has_no_table() -> None:
    assert tables(VLLM) == []
