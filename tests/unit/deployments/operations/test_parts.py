"""Tests what the launcher says about the parts of its fleet, and how it finds them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from qwenfleet.cluster.errors import FleetLost
from qwenfleet.deployments.operations.parts import (
    ACTORS,
    CONTROLLER,
    GCS,
    RAYLET,
    REGISTRY,
    VITAL,
    Part,
    PartReader,
    Parts,
    Restarts,
)

WHOLE = {GCS: 10, RAYLET: 11, CONTROLLER: 12, REGISTRY: 13}


def without(*parts: Part) -> dict[Part, int]:
    return {part: pid for part, pid in WHOLE.items() if part not in parts}


def test_whole_fleet_has_no_news() -> None:
    parts = Parts("/logs")
    assert parts.news({GCS: 10, RAYLET: 11}) == []  # Serve has not started yet
    assert parts.news(WHOLE) == parts.news(WHOLE) == []


@pytest.mark.parametrize("part", VITAL)
def test_fleet_ends_with_a_part_of_ray_that_nothing_replaces(part) -> None:
    parts = Parts("/logs")
    parts.news(WHOLE)
    name = rf"Ray's \w+ \(process {WHOLE[part]}\) died, and without it the fleet cannot run"
    with pytest.raises(FleetLost, match=rf"{name}\. Start the fleet again; .* in /logs\."):
        parts.news(without(part))


def test_part_that_died_before_the_first_reading_ends_the_fleet_too() -> None:
    with pytest.raises(FleetLost, match="Ray's GCS died"):
        Parts("/logs").news(without(GCS))


@pytest.mark.parametrize("part", ACTORS)
def test_actor_is_reported_when_it_dies_and_when_it_runs_again(part) -> None:
    parts = Parts("/logs")
    parts.news(WHOLE)
    (died,) = parts.news(without(part))
    assert died.startswith(f"{part.name} (process {WHOLE[part]}) died: Ray starts another")
    assert parts.news(without(part)) == []
    assert parts.news(WHOLE | {part: 99}) == [f"{part.name} runs again, as process 99"]
    assert parts.news(WHOLE | {part: 99}) == []


def test_actor_replaced_between_two_readings_is_reported_with_both() -> None:
    parts = Parts("/logs")
    parts.news(WHOLE)
    sentences = parts.news(WHOLE | {REGISTRY: 99})
    assert [sentence.split(" (")[0] for sentence in sentences] == [
        "the registry",
        "the registry runs again, as process 99",
    ]


@pytest.fixture
def launcher(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Run a launcher with a GCS, a raylet, and Serve's controller below the raylet."""
    sleep = shutil.which("sleep")
    assert sleep is not None
    for name in ("gcs_server", "raylet"):
        (tmp_path / name).symlink_to(sys.executable)
    start = (
        "import subprocess, sys, time\n"
        f"subprocess.Popen(['{tmp_path}/gcs_server', '-c', 'import time; time.sleep(60)'])\n"
        f"subprocess.Popen(['{tmp_path}/raylet', '-c', '''import subprocess, time\n"
        'subprocess.Popen(["ray::ServeController.listen", "60"], '
        f'executable="{sleep}")\n'
        "time.sleep(60)'''])\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", start], text=True) as process:
        yield process
        for child in psutil.Process(process.pid).children(recursive=True):
            child.kill()
        process.kill()


def expect(claim: Callable[[], bool], what: str) -> None:
    give_up_at = time.monotonic() + 20
    while not claim():
        assert time.monotonic() < give_up_at, what
        time.sleep(0.05)


def test_parts_are_found_below_their_launcher(launcher: subprocess.Popen[str]) -> None:
    reader = PartReader(launcher.pid)
    expect(lambda: set(reader.read()) == {GCS, RAYLET, CONTROLLER}, "all are found")
    gcs, controller = reader.read()[GCS], reader.read()[CONTROLLER]
    os.kill(gcs, 9)  # stays as a zombie: its parent does not wait for it
    os.kill(controller, 9)
    expect(lambda: set(reader.read()) == {RAYLET}, "only what lives is left")
    assert PartReader(os.getpid()).read() == {}


def test_each_restart_of_haproxy_is_reported_once(tmp_path: Path) -> None:
    journal = tmp_path / "7.restarts"
    restarts = Restarts(journal)
    assert restarts.news() == []
    for pid in (21, 22):
        with journal.open("a") as file:
            file.write(json.dumps({"pid": pid, "down_s": 0.44}) + "\n")
        (sentence,) = restarts.news()
        assert sentence.startswith(
            f"HAProxy died and runs again after 0.4 s, as process {pid}: the requests in it"
        )
    assert restarts.news() == []
