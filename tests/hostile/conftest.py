"""One fleet for all hostile clients: one gateway, HAProxy, two scripted models, one vLLM model."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest

from qwenfleet.cluster.config.auth import hash_of
from qwenfleet.loadtest import parts
from qwenfleet.loadtest.parts import Part
from tests.hostile.bystanders import SCRIPT, Crowd
from tests.hostile.cases import ONGOING
from tests.hostile.report import Row, table
from tests.hostile.senders import Site
from tests.key_forms import KEY

ROWS = pytest.StashKey[list[Row]]()

MODELS = ("quiet", "loud", "tiny")
SAMPLE_S = 0.2
FLEET = f"""
name: hostile
models:
  - id: quiet
    source: tiny-qwen3-moe
    engine: scripted
    max_model_len: 400000
    engine_args: {{hf_overrides: {{max_position_embeddings: 400000}}}}
    replicas: {{min: 2}}
    script: {{num_tokens: 300000, step_s: 0.05, tokens: {[ord(letter) for letter in SCRIPT]}}}
  - id: loud
    source: tiny-qwen3-moe
    engine: scripted
    max_model_len: 1500000
    engine_args: {{hf_overrides: {{max_position_embeddings: 1500000}}}}
    replicas: {{min: 2}}
    script: {{num_tokens: 1000000, step_s: 0.5, prefill_tokens_per_s: 10000000}}
  - id: tiny
    source: tiny-qwen3-moe
    replicas: {{min: 2}}
    max_model_len: 32768
    engine_args: {{dtype: float32}}
gateway: {{replicas: 1, port: {{port}}, max_ongoing_requests: {ONGOING}, keep_alive_s: 5}}
auth: {{keys: ["{hash_of(KEY)}"]}}
"""


class Machinery:
    """The processes of the fleet: who lives, how much memory they have, what the gateway logged."""

    def __init__(self, token: Path) -> None:
        self._token = token
        self._parts = parts.of_fleet(token)

    @property
    def pids(self) -> dict[str, list[int]]:
        """Processes of the parts that a client must not be able to end."""
        found = parts.of_fleet(self._token)
        return {
            part.name.lower(): [process.pid for process in found[part]]
            for part in (Part.GATEWAY, Part.ENGINE, Part.CORE, Part.HAPROXY)
        }

    def refresh(self) -> None:
        self._parts = parts.of_fleet(self._token)

    def yield_to_gateway(self) -> None:
        """Let cores compute only while nobody else wants the CPU: elsewhere they have GPUs."""
        for process in self._parts[Part.CORE]:
            with suppress(psutil.Error, ProcessLookupError):
                for thread in process.threads():
                    os.setpriority(os.PRIO_PROCESS, thread.id, 19)

    def kill_cores(self) -> None:
        for process in parts.of_fleet(self._token)[Part.CORE]:
            process.kill()

    def resident_mb(self) -> tuple[float, float]:
        """The memory of the gateway, and that of the largest engine host."""
        return self._most(Part.GATEWAY), self._most(Part.ENGINE)

    def _most(self, part: Part) -> float:
        sizes = [0]
        for process in self._parts[part]:
            try:
                sizes.append(process.memory_info().rss)
            except psutil.Error:
                continue
        return max(sizes) / 1e6

    def gateway_log(self) -> Path:
        """The file that the gateway logs to."""
        (gateway,) = self._parts[Part.GATEWAY]
        opened = [Path(file.path) for file in gateway.open_files()]
        return min(path for path in opened if path.match("logs/serve/replica_*.log"))

    def engine_addresses(self) -> tuple[tuple[str, int], ...]:
        """Where engines listen for gateways: the gateway is connected there."""
        listening = {
            one.laddr.port
            for process in self._parts[Part.ENGINE]
            for one in process.net_connections("tcp")
            if one.status == psutil.CONN_LISTEN
        }
        (gateway,) = self._parts[Part.GATEWAY]
        connected = {
            (one.raddr.ip, one.raddr.port)
            for one in gateway.net_connections("tcp")
            if one.status == psutil.CONN_ESTABLISHED and one.raddr.port in listening
        }
        return tuple(sorted(connected))


class Log:
    """What the gateway logs from now on."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._begin = path.stat().st_size

    def count(self, message: str, model: str | None = None) -> int:
        with self._path.open("rb") as file:
            file.seek(self._begin)
            lines = [line for line in file.read().splitlines() if message.encode() in line]
        found = [json.loads(line) for line in lines]
        return sum(
            line.get("message") == message and (model is None or line.get("model") == model)
            for line in found
        )


class Memory(threading.Thread):
    """Samples the memory of the gateway and of the engine hosts until `end`."""

    def __init__(self, machinery: Machinery) -> None:
        super().__init__()
        self._machinery = machinery
        self._is_over = threading.Event()
        self._before = self._most = machinery.resident_mb()
        self.start()

    def run(self) -> None:
        while not self._is_over.wait(SAMPLE_S):
            now = self._machinery.resident_mb()
            self._most = (max(self._most[0], now[0]), max(self._most[1], now[1]))

    def end(self) -> tuple[float, float]:
        """Return how far each grew at most, in MB."""
        self._is_over.set()
        self.join()
        return self._most[0] - self._before[0], self._most[1] - self._before[1]


@pytest.fixture(scope="session")
def fleet(run_fleet: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with run_fleet(FLEET, 6, tmp_path_factory.mktemp("hostile")) as fleet:
        yield fleet


@pytest.fixture(scope="session")
def machinery(fleet: Any) -> Machinery:
    state = Path(fleet.environment["XDG_STATE_HOME"])
    return Machinery(state / "qwenfleet" / f"{fleet.process.pid}.token")


@pytest.fixture(scope="session")
def crowd(fleet: Any, machinery: Machinery) -> Iterator[Crowd]:
    crowd = Crowd(fleet.url, KEY, "quiet", "tiny")
    time.sleep(2)
    crowd.mark()  # the begin of 20 streams at once is not what is measured
    yield crowd
    crowd.end()


@pytest.fixture
def site(fleet: Any, machinery: Machinery) -> Site:
    address = urlsplit(fleet.url)
    assert address.hostname is not None
    assert address.port is not None
    machinery.refresh()
    machinery.yield_to_gateway()
    return Site(address.hostname, address.port, KEY, machinery.engine_addresses())


@pytest.fixture
def gateway_log(machinery: Machinery) -> Log:
    machinery.refresh()
    return Log(machinery.gateway_log())


@pytest.fixture
def memory(machinery: Machinery) -> type[Memory]:
    return Memory


@pytest.fixture(scope="session")
def rows(request: pytest.FixtureRequest) -> list[Row]:
    return request.config.stash.setdefault(ROWS, [])


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    rows = config.stash.get(ROWS, [])
    if rows:
        terminalreporter.section("hostile clients")
        terminalreporter.write_line(table(rows))
