"""Two vLLM engines of the tiny model, six streams, and a table of the gaps after losses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.loss import observer

OBSERVED = pytest.StashKey[list[observer.Observation]]()
TOKENS = 1000
"""Long enough for a loss in the middle of each stream, on two cores at 40 to 80 tokens/s."""
FLEET = """
name: loss
models:
  - id: tiny
    source: tiny-qwen3-moe
    replicas: {min: 2}
    max_model_len: 4096
    engine_args: {dtype: float32, distributed_executor_backend: mp}  # a worker of its own, to kill
gateway: {replicas: 2, port: {port}, keep_alive_s: 5}
"""


@pytest.fixture(scope="session")
def fleet(run_fleet: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with run_fleet(FLEET, 2, tmp_path_factory.mktemp("loss")) as fleet:
        yield fleet


@pytest.fixture(scope="session")
def streams(fleet: Any, running_streams: Any) -> Callable[[], Any]:
    """The six streams; each call runs them again."""
    return lambda: running_streams(fleet.url, "tiny", TOKENS)


@pytest.fixture(scope="session")
def undisturbed(streams: Any) -> dict[str, Any]:
    """Transcripts of the six streams without a disturbance."""
    with streams() as transcripts:
        pass
    return dict(transcripts)


@pytest.fixture(scope="session")
def observed(request: pytest.FixtureRequest) -> list[observer.Observation]:
    """What was seen when parts were killed, for the table at the end."""
    return request.config.stash.setdefault(OBSERVED, [])


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    seen = config.stash.get(OBSERVED, [])
    if seen:
        terminalreporter.section("killed parts")
        terminalreporter.write_line(observer.table(seen))
