"""Results of readings for `qwenfleet top`, and its problems when nothing can be read."""

from __future__ import annotations

from typing import Any

import pytest

from qwenfleet.cluster.errors import ConfigError, FleetNotFound, MetricsError
from qwenfleet.cluster.live import exposition
from qwenfleet.cluster.live.reading import Place, Reader, Reading
from qwenfleet.cluster.live.view import FleetView

EPOCH = 1.8e9
URL = "http://m/metrics"
ODD = ['odd "name" \\ {x}|$(y) é', "[red]x[/red]", "a\nb", "a\u2028b", "a,b=c", "back\\", "}"]


class Machine:
    """Metrics pages by address, and a clock."""

    def __init__(self, **pages: str) -> None:
        self.pages = {URL: ""} | pages
        self.now = 0.0
        self.reader = Reader(self.place, fetch=self.fetch)
        self.models: tuple[str, ...] = ()

    def place(self) -> Place:
        return Place("demo at http://h", tuple(self.pages), self.models)

    def fetch(self, url: str) -> str:
        page = self.pages[url]
        if page == "refused":
            raise MetricsError(url, "refuses the connection", "Check that the fleet is running.")
        return page

    def read(self, at_s: float, page: str | None = None) -> Reading:
        self.now = at_s
        if page is not None:
            self.pages[URL] = page
        return self.reader.read(lambda: self.now, lambda: EPOCH + self.now)


def seen(reading: Reading) -> FleetView:
    assert reading.view is not None
    return reading.view


@pytest.mark.parametrize("model", ["coder", *ODD])
def test_two_reports_yield_the_numbers_of_a_model_with_any_name(
    metrics_text: Any, model: str
) -> None:
    machine = Machine()
    parts = metrics_text
    for at_s, events in ((0, 0), (10, 100)):
        clock_s = EPOCH + at_s
        reading = machine.read(
            at_s + 1,
            parts.page(
                parts.gateway(clock_s, model=model, events=events),
                parts.engine(clock_s, model=model),
            ),
        )
        assert reading.is_complete is (at_s == 10)
    view = seen(reading)
    (found,) = view.models
    assert (found.id, found.ready, found.engines) == (model, 1, 1)
    assert (found.running, found.waiting, found.moving) == (3, 1, 2)
    assert found.prompt_tokens_per_s == pytest.approx(1000)
    assert found.output_tokens_per_s == pytest.approx(100)
    assert found.requests_per_s == pytest.approx(10)
    assert found.cached_share == pytest.approx(0.8)
    assert [found.ttft.p50_s, found.ttft.p90_s] == pytest.approx([0.5, 0.9])
    assert found.inter_token.p50_s is None
    assert found.outcomes == {"completed": 90, "failed": 10}
    assert found.rejections == {"engine_refused": 10}
    assert (found.resumes, found.losses) == ({"drained": 100}, {"core_died": 100})
    assert found.slo["ttft"].is_broken
    assert not found.slo["availability"].is_broken
    assert found.slo["inter_token"].share is None
    (engine,) = view.engines
    assert (engine.id, engine.model, engine.state, engine.kv_usage) == ("e1", model, "ready", 0.25)
    assert view.age_s == (0, 0)  # since it came
    assert view.notes == ()


def test_a_loss_seen_by_two_gateways_counts_once_and_requests_are_summed(metrics_text: Any) -> None:
    machine = Machine()
    for at_s, events in ((0, 0), (10, 10)):
        gateways = [
            metrics_text.gateway(EPOCH + at_s, events=events, worker=name) for name in ("a", "b")
        ]
        reading = machine.read(at_s, metrics_text.page(*gateways))
    (model,) = seen(reading).models
    assert model.losses == {"core_died": 10}
    assert model.resumes == {"drained": 20}
    assert model.requests_per_s == pytest.approx(2)


def test_several_addresses_are_one_fleet_and_a_failed_one_is_reported(metrics_text: Any) -> None:
    other, third = "http://n2/metrics", "http://n3/metrics"
    machine = Machine()
    machine.pages[other] = metrics_text.page(metrics_text.engine(EPOCH, name="e2"))
    machine.pages[third] = "refused"
    reading = machine.read(0, metrics_text.page(metrics_text.gateway(EPOCH)))
    assert [engine.id for engine in seen(reading).engines] == ["e2"]
    assert (
        str(reading.problems[0])
        == f"{third} refuses the connection. Check that the fleet is running."
    )


def test_a_dead_process_lacks_a_clock_although_ray_keeps_its_counters(
    metrics_text: Any,
) -> None:
    dead = [text for text in metrics_text.gateway(EPOCH, events=5) if "clock" not in text]
    assert exposition.reports(metrics_text.page(dead), URL) == ()


def test_an_engine_that_stops_reporting_does_not_count_as_ready(metrics_text: Any) -> None:
    machine = Machine()
    page = metrics_text.page(metrics_text.engine(EPOCH), metrics_text.gateway(EPOCH))
    assert seen(machine.read(0, page)).models[0].ready == 1
    page = metrics_text.page(metrics_text.engine(EPOCH), metrics_text.gateway(EPOCH + 17))
    view = seen(machine.read(17, page))
    assert view.engines[0].is_silent
    assert view.models[0].ready == 0


def test_a_fleet_without_a_gateway_has_a_note(metrics_text: Any) -> None:
    view = seen(Machine().read(0, metrics_text.page(metrics_text.engine(EPOCH))))
    assert "no gateway reports" in view.notes[0]
    assert view.models[0].requests_per_s is None


def test_a_drain_and_the_replacement_of_a_drained_engine_have_notes(metrics_text: Any) -> None:
    parts = metrics_text
    page = parts.page(
        parts.gateway(EPOCH),
        parts.engine(EPOCH, name="e1"),
        parts.engine(EPOCH, name="e2", state="draining"),
        parts.engine(EPOCH, name="e3", state="starting", replaces_drained=True),
        parts.engine(EPOCH, name="e4", state="starting"),
    )
    view = seen(Machine().read(0, page))
    assert view.notes == (
        "engine e2 of coder drains; another starts when it has stopped",
        "engine e3 of coder loads in place of one that was drained",
    )


@pytest.mark.parametrize(
    ("skew_s", "reported"),
    [(0, None), (3, None), (-4, None), (40, "40 s fast"), (-300, "300 s slow")],
)
def test_a_skewed_clock_is_reported_and_does_not_change_ages(
    metrics_text: Any, skew_s: float, reported: str | None
) -> None:
    machine = Machine()
    for at_s in (0, 10):
        reading = machine.read(at_s, metrics_text.page(metrics_text.gateway(EPOCH + at_s + skew_s)))
    view = seen(reading)
    assert view.age_s == (0, 0)
    assert [reported in note and "192.0.2.2" in note for note in view.notes if reported] == [
        True
    ] * bool(reported)
    assert bool(view.notes) is bool(reported)


def test_a_stopped_fleet_has_no_numbers_until_it_is_back(
    metrics_text: Any,
) -> None:
    machine = Machine()
    machine.read(0, metrics_text.page(metrics_text.gateway(EPOCH)))
    away = machine.read(2, "refused")
    assert away.view is None
    assert "refuses the connection" in str(away.problems[0])
    assert not away.is_silent
    assert machine.read(10, metrics_text.page(metrics_text.gateway(EPOCH + 10))).is_complete

    def nowhere() -> Place:
        raise FleetNotFound("you have no running fleet on this machine", "Start one.")

    machine.reader.find = nowhere
    reading = machine.read(12)
    assert (reading.view, reading.title) == (None, "demo at http://h")
    assert "you have no running fleet" in str(reading.problems[0])


def test_an_address_without_a_fleet_is_a_problem_and_not_an_empty_table(metrics_text: Any) -> None:
    reading = Machine().read(0, metrics_text.page())
    assert reading.view is None
    assert reading.is_silent
    assert str(reading.problems[0]).startswith(f"{URL} has no metrics from a fleet's processes")


@pytest.mark.parametrize(
    "text",
    [
        'ray_qwenfleet_clock_seconds{role="gateway" 1',
        'ray_qwenfleet_clock_seconds{role="gateway"} soon',
        "ray_qwenfleet_clock_seconds{role=gateway} 1",
    ],
)
def test_a_broken_line_is_one_sentence(text: str) -> None:
    reading = Machine().read(0, text)
    assert "not in Prometheus' format" in str(reading.problems[0])


def test_one_of_several_fleets_must_be_named(metrics_text: Any) -> None:
    page = metrics_text.page(
        metrics_text.gateway(EPOCH, fleet="a"),
        metrics_text.gateway(EPOCH, fleet="b", worker="g2"),
    )
    machine = Machine()
    with pytest.raises(ConfigError, match=r"several fleets report there: a, b\. Name one with"):
        machine.read(0, page)
    machine.reader.fleet = "b"
    assert seen(machine.read(0)).name == "b"
    machine.reader.fleet = "c"
    with pytest.raises(ConfigError, match=r"no fleet named 'c' reports there\. These do: a, b"):
        machine.read(0)


def test_configured_models_are_always_shown_and_requests_without_a_model_only_if_any(
    metrics_text: Any,
) -> None:
    machine = Machine()
    machine.models = ("coder", "small")
    for at_s, events in ((0, 0), (10, 0), (20, 4)):
        page = metrics_text.page(
            metrics_text.gateway(EPOCH + at_s, model="none", events=events),
        )
        shown = [model.id for model in seen(machine.read(at_s, page)).models]
        assert shown == ["coder", "small"] + ["none"] * (events > 0)
