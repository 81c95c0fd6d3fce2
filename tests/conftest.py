"""Runs a fleet for integration tests with the commands that users type."""

from __future__ import annotations

import itertools
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from qwenfleet.cluster.local.ports import free_ports
from qwenfleet.cluster.metrics import Metric

STREAM_S, PATIENCE_S = 600, 30
GAPS = pytest.StashKey[dict[str, list[float]]]()
START_S = 480
"""Three vLLM engines and two gateways, each import of vLLM 9 s of CPU, on two busy cores."""


@dataclass
class Fleet:
    """A running fleet, as its users see it."""

    url: str
    process: subprocess.Popen[bytes]
    environment: dict[str, str]
    log: Path
    _metrics_url: str = ""

    def cli(self, *arguments: str, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
        """Run `qwenfleet` as its user would."""
        command = [sys.executable, "-m", "qwenfleet.cli", *arguments]
        options: dict[str, Any] = {"env": self.environment, "capture_output": True, "text": True}
        return subprocess.run(command, timeout=timeout_s, check=False, **options)

    def status(self) -> dict[str, Any]:
        answer = self.cli("status", "--json")
        assert answer.stdout, answer.stderr  # also when a part of the fleet does not answer
        return dict(json.loads(answer.stdout))

    def engines(self, model: str) -> list[dict[str, Any]]:
        """Return a model's engines. `status` asks for 4 s only, less than busy cores may take."""
        give_up_at = time.monotonic() + PATIENCE_S
        while (status := self.status())["problems"] and time.monotonic() < give_up_at:
            pass
        return [engine for engine in status["engines"] if engine["model"] == model]

    def expect_counted(self, *metrics: Metric) -> None:
        """Fail unless these count something soon: Ray's agent reports every few seconds."""
        wanted = {m.exported + "_count" * (m.kind == "histogram") for m in metrics}

        def are_there() -> bool:
            lines = [line for line in self.metrics().splitlines() if not line.endswith(" 0.0")]
            return wanted <= {line.partition("{")[0] for line in lines}

        wait_until(are_there, 60, f"{sorted(wanted)} above 0")

    def metrics(self) -> str:
        if not self._metrics_url:
            self._metrics_url = self.status()["metrics_url"]
        return httpx.get(self._metrics_url, timeout=30).text

    def ready(self, model: str) -> list[dict[str, Any]]:
        return [engine for engine in self.engines(model) if engine["state"] == "ready"]

    def expect_ready(self, model: str, count: int, *, lost: str = "") -> None:
        """Fail unless `count` engines are ready in time. `lost` is the id of a killed one, which
        is still listed for 5 s."""

        def are_ready() -> bool:
            ready = [engine["id"] for engine in self.ready(model)]
            return len(ready) == count and lost not in ready

        wait_until(are_ready, START_S, f"{count} engines ready")

    def running(self, model: str) -> int:
        """Return the number of requests in the engines of a model."""
        return sum(engine["running"] + engine["waiting"] for engine in self.engines(model))

    def expect_idle(self, model: str) -> None:
        """Fail unless the engines are idle soon. An engine announces itself each second; reading
        that starts a process that imports Ray, on two cores that may be busy."""
        wait_until(lambda: self.running(model) == 0, 12, f"engines of {model} stop")


def wait_until(claim: Callable[[], bool], timeout_s: float, what: str) -> None:
    """Poll until the claim holds; fail with `what` if it does not in time."""
    give_up_at = time.monotonic() + timeout_s
    while not claim():
        if time.monotonic() > give_up_at:
            pytest.fail(f"not within {timeout_s:.0f} s: {what}")
        time.sleep(0.2)


@dataclass
class Transcript:
    """The content of one answer, joined from its events, and the time of each event with tokens.
    The split into events depends on speed."""

    texts: dict[int, str] = field(default_factory=dict)
    """By choice."""
    tools: dict[int, dict[str, str]] = field(default_factory=dict)
    logprobs: dict[int, list[float]] = field(default_factory=dict)
    finish: dict[int, str] = field(default_factory=dict)
    usage: dict[str, int] = field(default_factory=dict)
    end: str = ""
    error: Any = None
    times: list[float] = field(default_factory=list)

    def differences(self, other: Transcript) -> list[str]:
        """Return the fields that differ. Logprobs may differ by the rounding of float32."""
        names = ("texts", "tools", "finish", "usage", "end", "error")
        unlike = [name for name in names if getattr(self, name) != getattr(other, name)]
        if self.logprobs != {
            index: pytest.approx(values, abs=1e-3) for index, values in other.logprobs.items()
        }:
            unlike.append("logprobs")
        return unlike

    def longest_gap(self, moment: float, within_s: float) -> float:
        """Return the longest gap in seconds that a loss at this moment can have caused."""
        return max(
            (
                end - begin
                for begin, end in itertools.pairwise(self.times)
                if begin < moment + within_s and end > moment
            ),
            default=0.0,
        )

    def take_body(self, body: str) -> None:
        """A whole answer, streamed or not."""
        if not body.startswith(("data:", "event:")):
            self.take(json.loads(body))
        for line in body.splitlines():
            self.take_line(line)

    def take_line(self, line: str) -> None:
        if line == "data: [DONE]":
            self.end = line
        elif line.startswith("data: "):
            self.take(json.loads(line.removeprefix("data: ")))

    def take(self, event: dict[str, Any]) -> None:
        """One event of any of the APIs."""
        kind = event.get("type", "")
        self.error = event.get("error") or self.error
        for choice in event.get("choices", ()):
            self._take_choice(choice)
        delta = event.get("delta") or {}
        if kind == "response.output_text.delta":
            self._add(0, event["delta"])
        elif kind == "content_block_delta":
            self._add(event["index"], delta.get("text", "") + delta.get("partial_json", ""))
        elif kind == "content_block_start":
            self._add(event["index"], event["content_block"].get("name", ""))
        elif kind == "message_delta":
            self.finish[0] = delta["stop_reason"]
        self.end = kind if kind in {"message_stop", "response.completed"} else self.end
        usage = event.get("usage") or (event.get("response") or {}).get("usage") or {}
        self.usage |= {k: v for k, v in usage.items() if k.endswith("_tokens") and v is not None}
        self.usage.pop("cache_read_input_tokens", None)  # a matter of which engine it was

    def _take_choice(self, choice: dict[str, Any]) -> None:
        index = choice["index"]
        delta = choice.get("delta") or choice.get("message") or {}
        self._add(index, choice.get("text") or delta.get("content") or "")
        for call in delta.get("tool_calls") or ():
            tool = self.tools.setdefault(call["index"], {"name": "", "arguments": ""})
            for key in tool:
                tool[key] += call["function"].get(key) or ""
            self.times.append(time.monotonic())
        logprobs = choice.get("logprobs") or {}
        values = logprobs.get("token_logprobs") or [
            entry["logprob"] for entry in logprobs.get("content") or ()
        ]
        self.logprobs.setdefault(index, []).extend(values)
        if choice.get("finish_reason"):
            self.finish[index] = choice["finish_reason"]

    def _add(self, index: int, text: str) -> None:
        if text:
            self.texts[index] = self.texts.get(index, "") + text
            self.times.append(time.monotonic())


def listen(url: str, path: str, body: dict[str, Any], transcript: Transcript) -> None:
    """Stream one request to its end, or to that of its connection."""
    try:
        with (
            httpx.Client(timeout=600) as client,
            client.stream("POST", url + path, json=body | {"stream": True}) as response,
        ):
            if response.status_code != 200:
                transcript.error = response.read().decode()
            for line in response.iter_lines():
                transcript.take_line(line)
    except httpx.TransportError as error:
        transcript.error = error


SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 40, "maxLength": 60},
        "steps": {
            "type": "array",
            "items": {"type": "string", "minLength": 20, "maxLength": 40},
            "minItems": 40,
        },
    },
    "required": ["name", "steps"],
    "additionalProperties": False,
}
ASK = [{"role": "user", "content": "Plan the move of a data centre, step by step."}]


def six_streams(model: str, tokens: int) -> dict[str, tuple[str, dict[str, Any]]]:
    """One stream of each kind whose state a resume has to carry."""
    common = {"model": model, "max_tokens": tokens}
    counted = {"stream_options": {"include_usage": True}}
    completion = common | counted | {"prompt": "def reverse(text):", "ignore_eos": True}
    function = {"name": "plan", "description": "Keeps a plan", "parameters": SCHEMA}
    return {
        "greedy": ("/v1/completions", completion | {"temperature": 0, "logprobs": 1}),
        "seeded": ("/v1/completions", completion | {"temperature": 0.8, "top_p": 0.9, "seed": 7}),
        "penalties": (
            "/v1/completions",
            completion
            | {
                "temperature": 0,
                "presence_penalty": 1.2,
                "frequency_penalty": 0.6,
                "repetition_penalty": 1.05,
            },
        ),
        "json": (
            "/v1/chat/completions",
            common
            | counted
            | {
                "messages": ASK,
                "temperature": 0.7,
                "seed": 1,
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "plan", "schema": SCHEMA, "strict": True},
                },
            },
        ),
        "tools": (
            "/v1/chat/completions",
            common
            | counted
            | {
                "messages": ASK,
                "temperature": 0,
                "tools": [{"type": "function", "function": function | {"strict": True}}],
                "tool_choice": "required",
            },
        ),
        "anthropic": (
            "/v1/messages",
            common | {"messages": ASK, "temperature": 0, "top_k": 1},
        ),
    }


@contextmanager
def running_streams(url: str, model: str, tokens: int) -> Iterator[dict[str, Transcript]]:
    """All six at the same time, each in a thread; at the end of the block they have ended."""
    requests = six_streams(model, tokens)
    transcripts = {name: Transcript() for name in requests}
    with ThreadPoolExecutor(len(requests)) as pool:
        futures = [
            pool.submit(listen, url, path, body, transcripts[name])
            for name, (path, body) in requests.items()
        ]
        yield transcripts
        for future in futures:
            future.result(timeout=STREAM_S)


@contextmanager
def running_fleet(text: str, engines: int, directory: Path, *, status: int = 0) -> Iterator[Fleet]:
    """Started by the command that users type; stopped by the Ctrl-C that they press. `text` is the
    configuration, with {port} for a free one; `status` is the exit status that is expected."""
    (port,) = free_ports(1, "127.0.0.1")
    config = directory / "fleet.yaml"
    config.write_text(text.replace("{port}", str(port)))
    environment = os.environ | {"XDG_STATE_HOME": str(directory / "state"), "PYTHONUNBUFFERED": "1"}
    log = directory / "serve.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "qwenfleet.cli", "serve", "--config", str(config)],
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    fleet = Fleet(f"http://127.0.0.1:{port}", process, environment, log)
    family: list[psutil.Process] = []

    def is_complete() -> bool:
        assert process.poll() is None, log.read_text()
        return f"all {engines} engines ready" in log.read_text()

    try:
        wait_until(is_complete, START_S, f"all engines ready; see {log}")
        yield fleet
    finally:
        if process.poll() is None:
            family = psutil.Process(process.pid).children(recursive=True)
            process.send_signal(signal.SIGINT)
        try:
            ended = process.wait(timeout=90)
        except subprocess.TimeoutExpired:
            process.kill()
            ended = process.wait()
        _, left = psutil.wait_procs(family, timeout=5)
        for orphan in left:
            orphan.kill()
    assert ended == status, log.read_text()
    assert left == [], "processes outlived Ctrl-C"


@pytest.fixture(scope="session")
def expect() -> Callable[[Callable[[], bool], float, str], None]:
    """Polls until a claim holds; fails when it does not in time."""
    return wait_until


@pytest.fixture(scope="session")
def run_program() -> Callable[[str, Path], dict[str, Any]]:
    """Runs a program of these tests by its module's name; it leaves results.json in a directory."""

    def run(module: str, directory: Path) -> dict[str, Any]:
        ran = subprocess.run(
            [sys.executable, "-m", module, str(directory)],
            cwd=Path(__file__).parents[1],
            capture_output=True,
            text=True,
            timeout=850,
            check=False,
        )
        assert ran.returncode == 0, ran.stdout[-1000:] + ran.stderr[-2000:]
        results: dict[str, Any] = json.loads((directory / "results.json").read_text())
        return results

    return run


@pytest.fixture(scope="session")
def new_transcript() -> type[Transcript]:
    return Transcript


@pytest.fixture(scope="session", name="running_streams")
def _running_streams() -> Callable[..., AbstractContextManager[dict[str, Transcript]]]:
    return running_streams


@pytest.fixture(scope="session")
def run_fleet() -> Callable[[str, int, Path], AbstractContextManager[Fleet]]:
    return running_fleet


@pytest.fixture(scope="session")
def gaps(request: pytest.FixtureRequest) -> dict[str, list[float]]:
    """By kind of loss: the longest gap of the six streams, for each repetition."""
    return request.config.stash.setdefault(GAPS, {})


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    gaps = config.stash.get(GAPS, {})
    if not gaps:
        return
    terminalreporter.section("gaps between two token events around a loss, in seconds")
    rows = ["| kind of loss | repetitions | median | longest |", "|---|---|---|---|"]
    for kind, values in gaps.items():
        rows.append(
            f"| {kind} | {len(values)} | {statistics.median(values):.2f} | {max(values):.2f} |"
        )
    terminalreporter.write_line("\n".join(rows))
