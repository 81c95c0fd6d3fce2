"""A server that answers completions as vLLM does, with faults on request.

`python completions_server.py PORT [options]` runs until SIGTERM. A request whose model is
"fault:NAME" gets that fault, whatever --fault says. GET /seen tells what came so far.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

FAULTS = {
    "": "none",
    "status": "HTTP 500",
    "not-utf-8": "HTTP 500 with a body that is not text",
    "short": "one token less than asked",
    "no-done": "a stream without [DONE]",
    "bad-json": "a body, or the last event of a stream, that is not JSON",
    "bad-text": "the same, with bytes that are not UTF-8",
    "bad-depth": "the same, with JSON nested too deep to read",
    "bad-shape": "the same, with JSON of another shape",
    "error-event": "an error in place of the last token, then [DONE]",
    "long-line": "an event of a megabyte",
    "hang-up": "the connection closes in the middle",
}
BURNER = """
import time
while True:
    until = time.process_time() + 0.03
    while time.process_time() < until: pass
    time.sleep(0.07)
"""
"""Uses a third of a core, so that other tests can run."""


@dataclass
class Seen:
    """What clients did."""

    requests: int = 0
    connections: int = 0
    most_at_once: int = 0
    prompts: list[str] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)


class CompletionsServer(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, port: int, *, step_s: float, ready_after_s: float, fault: str) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.step_s = step_s
        self.ready_at = time.monotonic() + ready_after_s
        self.fault = fault
        self.seen = Seen()
        self.at_work = 0
        self.lock = threading.Lock()

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: CompletionsServer

    def setup(self) -> None:
        super().setup()
        with self.server.lock:
            self.server.seen.connections += 1

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        if self.path == "/seen":
            self.answer(200, json.dumps(asdict(self.server.seen)).encode())
        elif self.path in ("/health", "/health/ready"):
            self.answer(200 if time.monotonic() >= self.server.ready_at else 503, b"")
        else:
            self.answer(404, b"")

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        server, seen = self.server, self.server.seen
        with server.lock:
            server.at_work += 1
            seen.requests += 1
            seen.most_at_once = max(seen.most_at_once, server.at_work)
            seen.prompts.append(body["prompt"])
            seen.bodies.append(body)
        try:
            self.complete(body)
        finally:
            with server.lock:
                server.at_work -= 1

    def complete(self, body: dict[str, Any]) -> None:
        _, is_named, name = body["model"].partition("fault:")
        fault = name if is_named else self.server.fault
        tokens = body["max_tokens"] - (fault == "short")
        if fault == "status":
            self.answer(500, b'{"error": {"message": "the engine is dead"}}')
        elif fault == "not-utf-8":
            self.answer(500, b"\xff\xfe")
        elif body["stream"]:
            self.stream(tokens, fault)
        else:
            self.whole(tokens, fault)

    def whole(self, tokens: int, fault: str) -> None:
        time.sleep(tokens * self.server.step_s)
        text = json.dumps({"choices": [choice("a" * tokens)], "usage": usage(tokens)}).encode()
        if fault == "hang-up":
            self.send_response(200)
            self.send_header("content-length", str(len(text)))
            self.end_headers()
            self.wfile.write(text[:10])
            self.close_connection = True
            return
        self.answer(200, spoilt(fault) or text)

    def stream(self, tokens: int, fault: str) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream; charset=utf-8")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        self.chunk(b": a comment\n\n")
        for number in range(tokens):
            time.sleep(self.server.step_s)
            if number == tokens - 1 and fault == "error-event":
                self.event(json.dumps({"error": {"message": "the engine is dead"}}).encode())
                tokens = 0
                break
            self.event(json.dumps({"choices": [choice("a")], "usage": None}).encode())
        if fault == "hang-up":
            self.close_connection = True
            return
        if fault == "long-line":
            self.event(b'"' + b"a" * 2**20 + b'"')
        if ill := spoilt(fault):
            self.event(ill)
        if tokens:
            self.event(json.dumps({"choices": [], "usage": usage(tokens)}).encode())
        if fault != "no-done":
            self.event(b"[DONE]")
        self.wfile.write(b"0\r\n\r\n")

    def event(self, data: bytes) -> None:
        self.chunk(b"data: " + data + b"\n\n")

    def chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))

    def answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def choice(text: str) -> dict[str, Any]:
    return {"index": 0, "text": text, "logprobs": None, "finish_reason": None}


def usage(tokens: int) -> dict[str, int]:
    return {"prompt_tokens": 64, "total_tokens": 64 + tokens, "completion_tokens": tokens}


def spoilt(fault: str) -> bytes:
    ill = {
        "bad-json": b'{"choices": [',
        "bad-text": b'{"choices": ["\xff"]}',
        "bad-depth": b'{"choices": ' + b"[" * 50_000,
        "bad-shape": b'{"usage": {"completion_tokens": "many"}}',
    }
    return ill.get(fault, b"")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("--step-ms", type=float, default=0)
    parser.add_argument("--ready-after-s", type=float, default=0, help="503 until then")
    parser.add_argument("--fault", choices=FAULTS, default="")
    parser.add_argument("--exit", type=int, metavar="STATUS", help="end at once")
    parser.add_argument("--burn", action="store_true", help="a child takes a third of a core")
    parser.add_argument("--stubborn", action="store_true", help="ignore SIGTERM, children too")
    options = parser.parse_args()
    if options.exit is not None:
        print("no memory for the model", flush=True)
        sys.exit(options.exit)
    if options.stubborn:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # inherited by the child
    else:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))  # the child becomes an orphan
    if options.burn:
        subprocess.Popen([sys.executable, "-S", "-c", BURNER])
    server = CompletionsServer(
        options.port,
        step_s=options.step_ms / 1000,
        ready_after_s=options.ready_after_s,
        fault=options.fault,
    )
    print(f"up, pid {os.getpid()}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
