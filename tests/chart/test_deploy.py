"""The CPU case on a real Ray: a head, two gateways and an engine, each a node with the labels,
resources and environment of its pod, and the chart's serveConfigV2 through `serve deploy`.

Only what one machine requires differs from a cluster: loopback, free ports, paths, and one HAProxy
for all nodes, because they share an address.
"""

from __future__ import annotations

import base64
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml

from qwenfleet.cluster.local.ports import free_port_range, free_ports
from qwenfleet.deployments.haproxy import write_launcher
from qwenfleet.deployments.operations.processes import of_fleet

pytestmark = pytest.mark.integration

BIN = Path(sys.executable).parent
ROOT = Path(__file__).resolve().parents[2]
ASK = ROOT / "helm" / "qwenfleet" / "files" / "ask.py"
START_S = 420
STOP_S = 30
DRAIN_S = 30 + 15 + 120
"""gateway.drainSeconds of the case, its margin, and the wait for another gateway, which has no pod
here."""
MODEL = "smollm2-135m-instruct"
VALUES = {
    "fleet": {"models": [{"id": MODEL, "max_model_len": 2048}], "gateway": {"replicas": 2}},
}
"""One engine instead of the case's two, because two cores run its start and all of Ray."""
STREAM_TOKENS = 120
GROUPS = ("head", "gateway", "gateway", "engine-0")


@pytest.fixture
def directory():
    """A short path, because those of Ray's sockets have at most 107 characters."""
    with tempfile.TemporaryDirectory(prefix="qf-", dir="/tmp", ignore_cleanup_errors=True) as path:
        yield Path(path)


class Cluster:
    """A Ray cluster started with the settings that the chart renders."""

    def __init__(self, documents: list[Any], groups: dict[str, Any], directory: Path) -> None:
        self.groups = groups
        self.directory = directory
        self.token_path = directory / "ray.token"
        secrets = {t["metadata"]["name"]: t["data"] for t in documents if t["kind"] == "Secret"}
        self.token = decoded(secrets["coder-qwenfleet-ray-auth"]["auth_token"])
        self.key = decoded(secrets["coder-qwenfleet-api-keys"]["key"])
        self.token_path.write_text(self.token)
        (directory / "keys").write_text(decoded(secrets["coder-qwenfleet-api-keys"]["keys"]))
        write_launcher(directory / "haproxy")
        self.http, self.gcs, self.dashboard, self.client = free_ports(4, "127.0.0.1")
        self.started: list[subprocess.Popen[bytes]] = []

    def environment(self, group: str) -> dict[str, str]:
        """The environment of the group's pods, with this machine's ports and paths."""
        (container,) = self.groups[group]["template"]["spec"]["containers"]
        found = {entry["name"]: entry["value"] for entry in container["env"]}
        del found["HOME"]
        for name, value in found.items():
            found[name] = value.replace("/cache", str(self.directory / "cache"))
        names = sorted(name for name in found if name.endswith("_PORT"))
        ports = free_port_range(len(names) + 100, "0.0.0.0")
        found |= dict(zip(names, map(str, ports), strict=False))
        found["RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT"] = str(ports[len(names)])
        found["RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT"] = str(ports[-1])
        found["RAY_SERVE_HAPROXY_BINARY_PATH"] = str(self.directory / "haproxy")
        # KubeRay sets these for authOptions; the path identifies this cluster's processes.
        return (
            dict(os.environ)
            | found
            | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self.token_path)}
            | {"RAY_raylet_start_wait_time_s": "120"}  # the default, 30, is short on two busy cores
        )

    def start(self, group: str) -> None:
        spec = self.groups[group]
        resources = dict(spec.get("resources", {}))
        cpus = resources.pop("CPU", spec["rayStartParams"].get("num-cpus"))
        agent, metrics = free_ports(2, "127.0.0.1")
        command = [str(BIN / "ray"), "start", "--block", "--node-ip-address=127.0.0.1"]
        command += [f"--num-cpus={cpus}", "--num-gpus=0", "--object-store-memory=100000000"]
        command += [f"--dashboard-agent-listen-port={agent}", f"--metrics-export-port={metrics}"]
        if group == "head":
            command += ["--head", f"--port={self.gcs}", f"--temp-dir={self.directory}/ray"]
            command += [f"--dashboard-port={self.dashboard}", "--dashboard-host=127.0.0.1"]
            command += [f"--ray-client-server-port={self.client}", "--disable-usage-stats"]
        else:
            command += [f"--address=127.0.0.1:{self.gcs}"]
            labels = ",".join(f"{key}={value}" for key, value in spec["labels"].items())
            command += [f"--labels={labels}"]
        with (self.directory / f"{group}.log").open("ab") as log:
            self.started.append(
                subprocess.Popen(
                    command,
                    env=self.environment(group),
                    cwd=ROOT,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            )

    def ask(self, tokens: int, transcript: list[str] | None = None) -> int:
        """Return the status of a completion; streamed lines are appended to the transcript."""
        body = {"model": MODEL, "prompt": "def reverse(text):", "max_tokens": tokens}
        with (
            httpx.Client(timeout=120) as client,
            client.stream(
                "POST",
                f"http://127.0.0.1:{self.http}/v1/completions",
                json=body | {"stream": transcript is not None, "ignore_eos": True},
                headers={"authorization": f"Bearer {self.key}"},
            ) as response,
        ):
            for line in response.iter_lines():
                if transcript is not None and line:
                    transcript.append(line)
            return response.status_code

    def api(self, path: str) -> httpx.Response:
        headers = {"authorization": f"Bearer {self.token}"}
        return httpx.get(f"http://127.0.0.1:{self.dashboard}{path}", headers=headers, timeout=10)

    def nodes(self) -> list[dict[str, Any]]:
        """The live nodes; empty while the head does not answer."""
        assert self.started[0].poll() is None, self.log("head.log")
        try:
            answer = self.api("/api/v0/nodes")
        except httpx.TransportError:
            return []
        if answer.status_code != 200:
            return []
        found: list[dict[str, Any]] = answer.json()["data"]["result"]["result"]
        return [node for node in found if node["state"] == "ALIVE"]

    def has(self, count: int) -> bool:
        """Whether this many nodes have joined; raises if one that was started has ended."""
        for group, started in zip(GROUPS, self.started, strict=False):
            assert started.poll() is None, self.log(f"{group}.log")
        return len(self.nodes()) == count

    def log(self, name: str) -> str:
        """The end of a log, for a failure's message."""
        path = self.directory / name
        return f"{name}: {path.read_text()[-3000:]}" if path.exists() else f"{name} does not exist"

    def deploy(self, config: dict[str, Any]) -> subprocess.CompletedProcess[str]:
        """Run `serve deploy`, as KubeRay does with serveConfigV2 over REST."""
        file = self.directory / "serve.yaml"
        file.write_text(yaml.safe_dump(config))
        return subprocess.run(
            [str(BIN / "serve"), "deploy", "-a", f"http://127.0.0.1:{self.dashboard}", str(file)],
            env=self.environment("head"),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def stop(self) -> None:
        """Kill all processes at once, because Ray would drain each node for 30 s. The loop finds
        those that started while their parent was killed."""
        give_up_at = time.monotonic() + STOP_S
        while left := of_fleet(self.token_path):
            assert time.monotonic() < give_up_at, f"still running: {left}"
            for process in left:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            for started in self.started:
                started.wait(timeout=STOP_S)
            psutil.wait_procs(left, timeout=1)


def decoded(text: str) -> str:
    return base64.b64decode(text).decode()


def until(claim: Any, what: str) -> None:
    give_up_at = time.monotonic() + START_S
    while not claim():
        assert time.monotonic() < give_up_at, f"not within {START_S} s: {what}"
        time.sleep(1)


@pytest.fixture
def cluster(render, groups, serve_config, directory):
    documents = render(VALUES, "cpu-kind")
    cluster = Cluster(documents, groups(documents), directory)

    try:
        for count, group in enumerate(GROUPS, start=1):
            cluster.start(group)
            until(lambda count=count: cluster.has(count), f"{group} joins")
        yield cluster
    finally:
        cluster.stop()


@pytest.mark.timeout(600)
def test_a_cluster_as_rendered_answers_a_completion(cluster, render, serve_config, groups):
    config = serve_config(render(VALUES, "cpu-kind"))
    (application,) = config["applications"]
    application["args"]["gateway"] |= {"host": "127.0.0.1", "port": cluster.http}
    application["args"]["auth"]["keys_file"] = str(cluster.directory / "keys")
    application["args"]["cache_dir"] = str(cluster.directory / "cache")
    config["http_options"] = {"host": "127.0.0.1", "port": cluster.http}
    config["proxy_location"] = "HeadOnly"

    deployed = cluster.deploy(config)
    dashboard = cluster.log("ray/session_latest/logs/dashboard.log")
    assert deployed.returncode == 0, deployed.stdout + deployed.stderr + dashboard
    asked = subprocess.run(
        [
            *(sys.executable, "-c", ASK.read_text(), f"http://127.0.0.1:{cluster.http}"),
            *(MODEL, "keys", str(START_S)),
        ],
        env=os.environ | {"API_KEY": cluster.key},
        capture_output=True,
        text=True,
        check=False,
    )
    status = cluster.api("/api/serve/applications/").json()
    assert asked.returncode == 0, f"{asked.stdout}{asked.stderr}\n{status}"
    for claim in ("request without a key returns 401", "request with an unknown key returns 401"):
        assert f"ok: a {claim}" in asked.stdout, "HAProxy passes on the gateway's refusal"
    assert "a completion returns 200" in asked.stdout

    until(lambda: all(cluster.ask(1) == 200 for _ in range(6)), "both gateways answer")
    status = cluster.api("/api/serve/applications/").json()
    deployments = status["applications"]["qwenfleet"]["deployments"]
    nodes = {name: {r["node_id"] for r in one["replicas"]} for name, one in deployments.items()}
    labels = {
        node["node_id"]: node["labels"]["qwenfleet.io/role"]
        for node in cluster.nodes()
        if "qwenfleet.io/role" in (node["labels"] or {})
    }
    assert {name: sorted(labels[node] for node in at) for name, at in nodes.items()} == {
        "gateway": ["gateway", "gateway"],
        "engine-0": ["engine"],
    }
    check_that_a_gateway_drains(cluster)


def check_that_a_gateway_drains(cluster: Cluster) -> None:
    """Send SIGTERM to `ray start`, as when a gateway's pod is deleted. Its streams finish, and new
    requests go to the other gateway."""
    transcripts: list[list[str]] = [[], []]
    with ThreadPoolExecutor(2) as pool:
        streams = [pool.submit(cluster.ask, STREAM_TOKENS, lines) for lines in transcripts]
        until(lambda: all(len(lines) > 5 for lines in transcripts), "both streams began")
        leaving = cluster.started[1]
        leaving.terminate()
        assert not any(stream.done() for stream in streams), "the streams ended too early"
        late = [cluster.ask(1) for _ in range(6)]
        assert [stream.result() for stream in streams] == [200, 200]
    assert late == [200] * 6
    for lines in transcripts:
        assert lines[-1] == "data: [DONE]", lines[-3:]
        # A busy gateway puts several tokens into one event.
        assert any('"finish_reason":"length"' in line for line in lines), lines[-3:]
    # It exits after its last stream or, in some runs, at the drain deadline: Serve kept it.
    leaving.wait(timeout=DRAIN_S + STOP_S)
