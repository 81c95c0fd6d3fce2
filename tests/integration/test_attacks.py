"""Attacks that found nothing, kept: tricks with paths, names of files and addresses, templates."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from tests.outside_names import CHAT, SECRET, TEMPLATES, fetches
from tests.path_tricks import METHODS, NOT_SERVED, TRICKS, request

pytestmark = pytest.mark.integration

ANSWER_S = 20
SHORT = {"max_tokens": 1, "max_output_tokens": 1}


class Listener(threading.Thread):
    """Counts who connects to it."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self.visits = 0
        self.start()

    def run(self) -> None:
        while True:
            try:
                visitor, _ = self._socket.accept()
            except OSError:
                return
            self.visits += 1
            visitor.close()

    def end(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self.join()
        self._socket.close()


@pytest.fixture
def listener() -> Iterator[Listener]:
    listener = Listener()
    with socket.create_connection(("127.0.0.1", urlsplit(listener.url).port or 0)) as own:
        assert own.recv(1) == b""
    assert listener.visits == 1, "it counts"
    yield listener
    listener.end()


def raw(url: str, data: bytes) -> bytes:
    """Return what comes back for raw bytes until the connection closes."""
    address = urlsplit(url)
    with socket.create_connection((address.hostname or "", address.port or 0), 10) as connection:
        connection.sendall(data)
        seen = b""
        while piece := connection.recv(65536):
            seen += piece
    return seen


def ask(fleet: Any, path: str, body: dict[str, Any], model: str = "tiny") -> httpx.Response:
    sent = SHORT | {"model": model} | body
    return httpx.post(fleet.url + path, json=sent, timeout=ANSWER_S)


def test_no_trick_with_a_path_reaches_a_route_that_is_not_served(fleet):
    for target in TRICKS:
        for method in METHODS:
            answer = raw(fleet.url, request(method, target))
            assert int(answer.split()[1]) in NOT_SERVED, (method, target, answer[:200])
            assert b"smollm2" not in answer


def test_nothing_that_a_request_names_is_fetched_or_opened(fleet, listener, tmp_path):
    secret = tmp_path / "secret.png"
    secret.write_text(SECRET)
    wrong = {}
    for name, (path, body) in fetches(listener.url, str(secret)).items():
        answer = ask(fleet, path, body)
        if answer.status_code >= 500 or SECRET in answer.text:
            wrong[name] = (answer.status_code, answer.text[:200])
    assert listener.visits == 1, "only the test itself"
    assert wrong == {}


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_template_in_a_request_is_refused(fleet, template):
    for path in (CHAT, "/tokenize"):
        messages = [{"role": "user", "content": "x"}]
        for fields in (
            {"chat_template": template},
            {"chat_template_kwargs": {"chat_template": template}},
        ):
            answer = ask(fleet, path, {"messages": messages} | fields)
            assert answer.status_code == 400, (path, answer.text[:200])
            assert "1337" not in answer.text


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_template_in_a_message_is_plain_text(fleet, template):
    tool = {"type": "function", "function": {"name": "f", "description": template}}
    for fields in ({}, {"tools": [tool]}):
        messages = [{"role": "user", "content": template}]
        tokens = ask(fleet, "/tokenize", {"messages": messages} | fields).json()["tokens"]
        prompt = ask(fleet, "/detokenize", {"tokens": tokens}).json()["prompt"]
        assert prompt.count(template) == 1 + len(fields)
