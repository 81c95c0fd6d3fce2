"""No prompt waits for a long one or for /tokenize, in vLLM's real front end."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import threading
import warnings
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
import pytest_asyncio

os.environ.setdefault("VLLM_TARGET_DEVICE", "cpu")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from vllm import envs
    from vllm.renderers.base import BaseRenderer

    from qwenfleet.deployments.vllm_adapter import front_end
    from qwenfleet.deployments.vllm_adapter.renderer_pools import LONG_CHARS

from qwenfleet.cluster.config.model import ModelConfig
from qwenfleet.cluster.models.sources import locate
from qwenfleet.deployments.wire.frames import EngineDescription

LONG = "y" * (LONG_CHARS + 1)
pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.fixture(autouse=True)
def no_blocking_call_on_the_loop() -> None:
    """vLLM's constructors read files."""


class Gate:
    """Holds the tokenizer at prompts that contain a word, until it is opened."""

    def __init__(self) -> None:
        self.word = "held"
        self.is_open = threading.Event()
        self.begun: list[str] = []

    def wait(self, text: str) -> None:
        self.begun.append(text)
        if self.word in text:
            assert self.is_open.wait(60)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate = Gate()
    original = BaseRenderer._tokenize_prompt

    def tokenize(renderer: Any, prompt: Any, params: Any) -> Any:
        gate.wait(prompt["prompt"])
        return original(renderer, prompt, params)

    monkeypatch.setattr(BaseRenderer, "_tokenize_prompt", tokenize)
    yield gate
    gate.is_open.set()


@pytest_asyncio.fixture
async def made(client: Any, gate: Gate) -> AsyncIterator[Any]:
    """A front end without engines: nothing here needs one."""
    model = ModelConfig(
        id="coder", source="tiny-qwen3-moe", engine_args={"renderer_num_workers": 1}
    )
    path = await asyncio.to_thread(locate, model.source)
    made = await front_end.build(model, path, EngineDescription(max_model_len=4096), client)
    gate.begun.clear()
    yield made
    gate.is_open.set()
    made.llm.shutdown()
    gc.unfreeze()
    envs.disable_envs_cache()


async def ask(made: Any, path: str, **body: Any) -> httpx.Response:
    transport = httpx.ASGITransport(made.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        return await client.post(path, json={"model": "coder", **body}, timeout=60)


async def ask_until(has_left: asyncio.Event, made: Any, path: str, **body: Any) -> None:
    """Ask, and disconnect when the event is set."""
    content = json.dumps({"model": "coder", **body}).encode()
    messages = [{"type": "http.request", "body": content, "more_body": False}]

    async def receive() -> Any:
        if messages:
            return messages.pop()
        await has_left.wait()
        return {"type": "http.disconnect"}

    async def send(_: Any) -> None: ...

    scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [(b"content-type", b"application/json")],
    }
    await made.app(scope, receive, send)


def tokenized(made: Any, text: str) -> Any:
    """Tokenize a prompt, as chats and completions do."""
    renderer = made.llm.renderer
    return renderer._tokenize_prompt_async({"prompt": text}, renderer.default_cmpl_tok_params)


async def test_a_prompt_waits_neither_for_a_long_one_nor_for_tokenize(
    made: Any, gate: Gate, eventually: Any
) -> None:
    long = asyncio.ensure_future(tokenized(made, f"held {LONG}"))
    route = asyncio.create_task(ask(made, "/tokenize", prompt="held"))
    await eventually(lambda: len(gate.begun) == 2)
    async with asyncio.timeout(10):
        assert (await tokenized(made, "abc"))["prompt_token_ids"]
    assert not long.done()
    assert not route.done()
    gate.is_open.set()
    assert (await route).json()["count"] == len((await tokenized(made, "held"))["prompt_token_ids"])
    await long


async def test_work_that_waits_is_counted_and_dropped_with_its_client(
    made: Any, gate: Gate, eventually: Any
) -> None:
    first = asyncio.create_task(ask(made, "/tokenize", prompt="held"))
    await eventually(lambda: gate.begun == ["held"])
    has_left = asyncio.Event()
    second = asyncio.create_task(ask_until(has_left, made, "/tokenize", prompt="left"))
    third = asyncio.create_task(ask(made, "/tokenize", prompt="kept"))
    others = {"prompt": 0, "long_prompt": 0, "fill_in_the_middle": 0}
    await eventually(lambda: made.rendering == others | {"tokenize": 2})
    has_left.set()
    await second
    gate.is_open.set()
    assert (await first).status_code == (await third).status_code == 200
    assert gate.begun == ["held", "kept"]


async def test_detokenize_returns_the_text_of_the_tokens(made: Any) -> None:
    text = "naïve 🙂 \n<|im_start|>user"
    tokens = (await ask(made, "/tokenize", prompt=text)).json()["tokens"]
    answer = await ask(made, "/detokenize", tokens=tokens)
    assert answer.json() == {"prompt": text}
    decoded = await made.llm.renderer._async_tokenizer_decode(tokens)
    assert decoded == made.llm.renderer.get_tokenizer().decode(tokens) == text


async def test_the_tokenizer_has_a_copy_for_each_thread_and_the_loop(made: Any) -> None:
    """It would be copied during a request, which holds the interpreter for a second."""
    assert made.llm.model_config.renderer_num_workers == 3
    assert made.llm.renderer._executor._inner._max_workers == 1
