"""The script of `helm test`, against correct and faulty servers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

pytestmark = pytest.mark.chart

SCRIPT = Path(__file__).resolve().parents[2] / "helm" / "qwenfleet" / "files" / "ask.py"
KEY = "qf-" + "k" * 43


class Fleet:
    """Behavior of the server, which tests change."""

    asks_for_keys = True
    takes_any_key = False
    is_ready = True
    loads_for = 0
    """Number of requests to answer with 503, as while the model loads."""
    tokens = 8
    url = ""


@pytest.fixture
def fleet():
    fleet = Fleet()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.answer(200 if fleet.is_ready else 503, {"status": "ok"})

        def do_POST(self):
            self.rfile.read(int(self.headers["content-length"]))
            key = self.headers.get("authorization", "").removeprefix("Bearer ")
            known = key == KEY or (fleet.takes_any_key and key)
            if fleet.asks_for_keys and not known:
                self.answer(401, {"error": "no key"})
            elif fleet.loads_for > 0:
                fleet.loads_for -= 1
                self.answer(503, {"error": "no engine is ready"})
            else:
                self.answer(200, {"usage": {"completion_tokens": fleet.tokens}})

        def answer(self, status, body):
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    fleet.url = f"http://127.0.0.1:{server.server_address[1]}"
    yield fleet
    server.shutdown()
    server.server_close()


def ask(fleet, *, key=KEY, mode="keys", wait_s="5"):
    return subprocess.run(
        [sys.executable, "-c", SCRIPT.read_text(), fleet.url, "coder", mode, wait_s],
        env=os.environ | {"API_KEY": key},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_a_fleet_that_requires_keys_and_answers_passes(fleet):
    done = ask(fleet)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("ok: ") == 5


def test_a_fleet_without_keys_gets_a_request_without_one(fleet):
    fleet.asks_for_keys = False
    assert ask(fleet, key="", mode="open").returncode == 0


def test_without_the_key_only_the_refusal_is_tested(fleet):
    done = ask(fleet, key="")
    assert done.returncode == 0
    assert "no completion was requested" in done.stdout


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("asks_for_keys", False, "a request without a key returns 200, expected 401"),
        ("takes_any_key", True, "a request with an unknown key returns 200, expected 401"),
        ("tokens", 0, "0 tokens generated"),
    ],
)
def test_a_failure_is_reported(fleet, name, value, sentence):
    setattr(fleet, name, value)
    done = ask(fleet)
    assert done.returncode == 1
    assert f"FAILED: {sentence}" in done.stdout


def test_a_fleet_that_never_becomes_ready_fails_after_the_time_limit(fleet):
    fleet.is_ready = False
    done = ask(fleet, wait_s="1")
    assert done.returncode == 1
    assert "/health/ready returns 503" in done.stdout


def test_the_script_waits_for_a_model_that_loads_while_another_is_ready(fleet):
    fleet.loads_for = 1
    done = ask(fleet)
    assert done.returncode == 0, done.stdout
    assert "a completion returns 200" in done.stdout


def test_a_model_that_never_loads_fails_after_the_time_limit(fleet):
    fleet.loads_for = 1000
    done = ask(fleet, wait_s="1")
    assert done.returncode == 1
    assert "FAILED: a completion returns 503" in done.stdout
