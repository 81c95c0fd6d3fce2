"""Fill-in-the-middle on the real fleet: completions with a suffix, and llama.cpp's editors."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

pytestmark = pytest.mark.integration

HOLE: dict[str, Any] = {
    "model": "tiny",
    "prompt": "def add(a, b):\n    ",
    "suffix": "\n\nprint(add(1, 2))\n",
    "max_tokens": 12,
    "temperature": 0,
}


def complete(fleet, **body) -> httpx.Response:
    return httpx.post(f"{fleet.url}/v1/completions", json=HOLE | body, timeout=120)


def test_a_suffix_and_the_files_of_a_repository_reach_the_model(fleet):
    plain = complete(fleet, suffix="").json()
    with_suffix = complete(fleet).json()
    files = [{"path": "src/math.py", "text": "def sub(a, b):\n    return a - b\n"}]
    fim = {"repository": "calc", "path": "src/add.py", "files": files}
    with_files = complete(fleet, fim=fim).json()
    prompts = [body["usage"]["prompt_tokens"] for body in (plain, with_suffix, with_files)]
    assert prompts[0] == len(HOLE["prompt"])
    assert prompts[1] == len(HOLE["prompt"]) + len(HOLE["suffix"]) + 3
    tokens = 1 + 2  # of the repository's name and of two files
    text = len("calc\nsrc/math.py\n\nsrc/add.py\n") + len(files[0]["text"])
    assert prompts[2] == prompts[1] + tokens + text
    assert with_suffix["choices"][0]["finish_reason"] in ("stop", "length")


def test_a_streamed_middle_is_the_whole_one(fleet):
    whole = complete(fleet).json()["choices"][0]["text"]
    lines = complete(fleet, stream=True).text.splitlines()
    events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    assert "".join(event["choices"][0]["text"] for event in events if event["choices"]) == whole


def test_an_editor_of_llama_cpp_gets_its_middle(fleet):
    body = {
        "model": "tiny",
        "input_prefix": "def add(a, b):\n",
        "prompt": "    ",
        "input_suffix": HOLE["suffix"],
        "input_extra": [],
        "n_predict": 12,
        "samplers": ["top_k", "top_p", "infill"],
        "cache_prompt": True,
        "stream": False,
    }
    answer = httpx.post(f"{fleet.url}/infill", json=body, timeout=120)
    assert answer.status_code == 200, answer.text
    assert answer.json()["stop"] is True
    assert answer.json()["content"]
    streamed = httpx.post(f"{fleet.url}/infill", json=body | {"stream": True}, timeout=120)
    events = [json.loads(line[6:]) for line in streamed.text.split("\n") if line[:6] == "data: "]
    assert "".join(event["content"] for event in events) == answer.json()["content"]
    assert [event["stop"] for event in events] == [False] * (len(events) - 1) + [True]


def test_a_model_without_the_tokens_says_how_to_ask_otherwise(fleet):
    for path, body in (
        ("/v1/completions", {"prompt": "a", "suffix": "b"}),
        ("/infill", {"input_prefix": "a", "input_suffix": "b"}),
    ):
        answer = httpx.post(f"{fleet.url}{path}", json={"model": "smollm2", **body}, timeout=60)
        assert answer.status_code == 400, answer.text
        assert "suffix" in answer.json()["error"]["message"]
        assert "chat" in answer.json()["error"]["message"]
