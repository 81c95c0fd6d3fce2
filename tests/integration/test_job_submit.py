"""`ray job submit` onto a real head with dashboard and token auth that has no qwenfleet installed:
its code, and its vLLM plugin, come with the working directory."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import site
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from qwenfleet.cluster.config.fleet import FleetConfig
from qwenfleet.cluster.local.ports import free_ports
from qwenfleet.cluster.metrics import SLO_THRESHOLD
from qwenfleet.deployments.environment import ray_environment
from qwenfleet.deployments.haproxy import write_launcher
from qwenfleet.deployments.operations.processes import of_fleet

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
CODE = ("qwenfleet", "cluster", "deployments", "kernels", "loadtest", "pyproject.toml")
FLEET = """
name: job
models:
  - id: tiny
    source: tiny-qwen3-moe
    max_model_len: 4096
    kv_cache_gib: 0.1
    replicas: {min: ENGINES}
    engine_args: {quantization: QUANTIZATION}
gateway: {port: PORT, host: HOST}
slo: {ttft_s: TTFT}
auth: AUTH
"""
ENGINES = """
import json, ray
from qwenfleet.deployments.registry import client as registry
ray.init(address="auto", namespace=registry.NAMESPACE, log_to_driver=False)
print(json.dumps([e.id for e in registry.read("job").engines if e.state == "ready"]))
"""


class Cluster:
    """A Ray head, the Python that it runs in, and a working directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.python = _python_without_qwenfleet(directory / "venv")
        self.work = directory / "work"
        self.work.mkdir()
        for name in CODE:
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, self.work / name, symlinks=True)
            else:
                shutil.copy(ROOT / name, self.work)
        self.port, gcs, self.dashboard, *agents = free_ports(7, "127.0.0.1")
        self.token = directory / "ray.token"
        self.token.write_text(secrets.token_hex(32))
        launcher = directory / "haproxy"
        write_launcher(launcher)
        path = f"{self.python.parent}{os.pathsep}{os.environ['PATH']}"
        self.environment = {
            **{key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
            **ray_environment(FleetConfig(), self.token, launcher),
            "PATH": path,
        }
        self.metrics_port = agents[2]
        self.log = (directory / "ray.log").open("wb")
        # Ray's sockets lie below it, and their paths may have 107 bytes.
        self.temporary = tempfile.mkdtemp(prefix="qf-", dir="/tmp")
        ports = ("dashboard-agent-listen-port", "dashboard-agent-grpc-port", "metrics-export-port")
        self.head = subprocess.Popen(
            [
                *self.ray("start", "--head", "--block", "--num-cpus=4", "--disable-usage-stats"),
                "--node-ip-address=127.0.0.1",
                f"--port={gcs}",
                "--dashboard-host=127.0.0.1",
                f"--dashboard-port={self.dashboard}",
                *(f"--{name}={port}" for name, port in zip(ports, agents, strict=False)),
                f"--temp-dir={self.temporary}",
                "--object-store-memory=100000000",
            ],
            env=self.environment,
            stdout=self.log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self.environment["RAY_ADDRESS"] = f"127.0.0.1:{gcs}"

    def ray(self, *arguments: str) -> list[str]:
        return [str(self.python), "-m", "ray.scripts.scripts", *arguments]

    def is_up(self) -> bool:
        assert self.head.poll() is None, (self.directory / "ray.log").read_text()
        try:
            url = f"http://127.0.0.1:{self.dashboard}/api/version"
            headers = {"authorization": f"Bearer {self.token.read_text()}"}
            return httpx.get(url, headers=headers, timeout=5).status_code == 200
        except httpx.HTTPError:
            return False

    def submit(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """As a user does it."""
        command = self.ray(
            *("job", "submit", "--address", f"http://127.0.0.1:{self.dashboard}"),
            *("--working-dir", ".", "--", "python", "-m", "qwenfleet.deployments", *arguments),
        )
        return subprocess.run(
            command,
            cwd=self.work,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=500,
            check=False,
        )

    def deploy(
        self,
        engines: int,
        ttft_s: int,
        *,
        quantization: str = "null",
        host: str = "127.0.0.1",
        auth: str = "null",
    ) -> subprocess.CompletedProcess[str]:
        text = FLEET.replace("ENGINES", str(engines)).replace("PORT", str(self.port))
        text = text.replace("TTFT", str(ttft_s)).replace("QUANTIZATION", quantization)
        text = text.replace("HOST", host).replace("AUTH", auth)
        (self.work / "fleet.yaml").write_text(text)
        return self.submit("fleet.yaml")

    def ask(self) -> httpx.Response:
        return httpx.post(
            f"http://127.0.0.1:{self.port}/v1/completions",
            json={"model": "tiny", "prompt": "def f(", "max_tokens": 8},
            timeout=60,
        )

    def objectives(self) -> list[tuple[str, float]]:
        """The process of each gateway that says so, and its objective for first tokens."""
        text = httpx.get(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=30).text
        (name, wanted) = (SLO_THRESHOLD.exported, {"slo": "ttft"}.items())
        return [
            (sample.labels["WorkerId"], sample.value)
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == name and wanted <= sample.labels.items()
        ]

    def engines(self) -> list[str]:
        asked = subprocess.run(
            [str(self.python), "-c", ENGINES],
            cwd=self.work,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        engines: list[str] = json.loads(asked.stdout.splitlines()[-1])
        return engines

    def end(self) -> None:
        self.head.terminate()
        try:
            self.head.wait(timeout=60)
        finally:
            for process in of_fleet(self.token):
                process.kill()
            self.log.close()
            shutil.rmtree(self.temporary, ignore_errors=True)


def _python_without_qwenfleet(folder: Path) -> Path:
    """A Python that has all that ours has, but for us."""
    venv.create(folder, symlinks=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    for installed in Path(site.getsitepackages()[0]).iterdir():
        if "qwenfleet" not in installed.name:
            (packages / installed.name).symlink_to(installed)
    return folder / "bin" / "python"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    cluster = Cluster(tmp_path_factory.mktemp("job"))
    try:
        yield cluster
    finally:
        cluster.end()


def test_a_job_deploys_and_changes_a_fleet(cluster, expect):
    expect(cluster.is_up, 120, "Ray's dashboard answers")

    first = cluster.deploy(1, ttft_s=7)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "all 1 engines ready; the fleet keeps running when this job ends" in first.stdout
    answer = cluster.ask()
    assert answer.json()["usage"]["completion_tokens"] == 8, answer.text
    (engine,) = cluster.engines()
    expect(lambda: len(cluster.objectives()) == 1, 60, "the gateway exports its objective")
    ((gateway, objective_s),) = cluster.objectives()
    assert objective_s == 7

    again = cluster.deploy(2, ttft_s=9)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "all 2 engines ready" in again.stdout
    assert engine in cluster.engines(), "an engine that nothing changed for goes on"
    expect(lambda: cluster.objectives() == [(gateway, 9)], 60, "the same gateway has a new one")


def test_update_whose_engines_do_not_start_says_so_and_leaves_the_others(cluster):
    before = cluster.engines()
    broken = cluster.deploy(2, ttft_s=9, quantization="nonsense")
    printed = broken.stdout + broken.stderr
    assert broken.returncode != 0
    assert "an engine of tiny failed to start 2 times" in printed
    assert "new replicas of fleet 'job' do not start: engine-0: " in printed
    assert "go on: 1 of engine-0, 1 of gateway" in printed
    assert "Traceback" not in printed
    assert set(cluster.engines()) < set(before)
    assert cluster.ask().status_code == 200


def test_job_prints_where_a_running_serve_listens(cluster):
    ran = cluster.deploy(1, ttft_s=9, host="0.0.0.0", auth="none")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "gateway.host 0.0.0.0 and gateway.port" in ran.stdout
    assert re.search(
        rf"only programs on node \S+ reach http://127\.0\.0\.1:{cluster.port};", ran.stdout
    )
    assert f"ready: http://127.0.0.1:{cluster.port}" in ran.stdout


def test_a_job_removes_its_fleet(cluster):
    removed = cluster.submit("fleet.yaml", "--stop")
    assert removed.returncode == 0, removed.stdout
    assert "fleet 'job' is removed" in removed.stdout
    with pytest.raises(httpx.HTTPError):
        httpx.get(f"http://127.0.0.1:{cluster.port}/v1/models", timeout=5).raise_for_status()


def test_failed_job_prints_one_sentence(cluster):
    stopped = cluster.submit("fleet.yaml", "--stop")
    assert stopped.returncode != 0
    assert "this Ray cluster does not run fleet 'job'" in stopped.stdout + stopped.stderr

    (cluster.work / "wrong.yaml").write_text("models:\n  - id: tiny\n    repliccas: {min: 1}\n")
    wrong = cluster.submit("wrong.yaml")
    assert "wrong.yaml line 3" in wrong.stdout + wrong.stderr
    assert "Traceback" not in wrong.stdout


def test_outside_a_cluster_it_says_where_it_belongs():
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    ran = subprocess.run(
        [sys.executable, "-m", "qwenfleet.deployments", "/nowhere/fleet.yaml"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ran.returncode == 1
    assert ran.stderr.startswith("qwenfleet: /nowhere/fleet.yaml")
