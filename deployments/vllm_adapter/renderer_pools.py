"""Renderer pools: the threads in which a front end renders chats, tokenizes and detokenizes.

vLLM has one pool of one thread for all of it, so that a short prompt waits for a long one, and a
chat for /tokenize, seconds per MB. Here long prompts have threads of their own, and so do the
routes /tokenize and /detokenize, which end in nothing but text, and the prompts of editors, which
are short and in a hurry. The tokenizer lets the interpreter go while it works. What still waits for
a thread is dropped when its client disconnects; what runs cannot be interrupted.

vLLM internals used here (0.32): BaseRenderer (_executor, _resources, _tokenize_prompt,
_tokenize_prompt_async, _decode, _async_tokenizer_decode), _SwappableExecutor,
HfRenderer._apply_chat_template_async, OnlineRenderer.renderer, ServingTokenization, make_async.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Final

from transformers import PreTrainedTokenizerFast
from vllm.renderers.base import _SwappableExecutor
from vllm.renderers.hf import HfRenderer, safe_apply_chat_template
from vllm.utils.async_utils import make_async

PROMPT_THREADS: Final = 2
"""Default of vLLM's `renderer_num_workers`: a rendered template does not wait for a prompt."""
LONG_THREADS: Final = 1
TOKENIZE_THREADS: Final = 1
MIDDLE_THREADS: Final = 1
"""For fill-in-the-middle, whose tokenizer needs no copy."""
APART_THREADS: Final = LONG_THREADS + TOKENIZE_THREADS
"""Threads besides those of `renderer_num_workers`. vLLM keeps a copy of the tokenizer for each of
its threads, and makes another one, holding the interpreter for a second, when none is left."""
LONG_CHARS: Final = 100_000
"""A prompt of more characters is long: 25,000 tokens take 50 ms."""


class RendererPools:
    """Divides the work of one model's renderer."""

    def __init__(self, renderer: Any, prompt_threads: int) -> None:
        """Takes `prompt_threads` for vLLM's own pool, which must be idle."""
        self._renderer = renderer
        prompt = renderer._executor
        prompt._max_workers = prompt_threads
        prompt.replace_inner()
        self._pools: dict[str, _SwappableExecutor] = {
            "prompt": prompt,
            "long_prompt": _SwappableExecutor(LONG_THREADS),
            "tokenize": _SwappableExecutor(TOKENIZE_THREADS),
            "fill_in_the_middle": _SwappableExecutor(MIDDLE_THREADS),
        }
        for name in ("long_prompt", "tokenize", "fill_in_the_middle"):
            renderer._resources.callback(self._pools[name].shutdown, wait=False)
        short = make_async(renderer._tokenize_prompt, executor=prompt)
        long = make_async(renderer._tokenize_prompt, executor=self._pools["long_prompt"])

        def tokenize(prompt: Any, params: Any) -> Any:
            chosen = long if len(prompt["prompt"]) > LONG_CHARS else short
            return chosen(prompt, params)

        renderer._tokenize_prompt_async = tokenize
        renderer._async_tokenizer_decode = make_async(self._decode, executor=prompt)

    @property
    def waiting(self) -> dict[str, int]:
        """Pieces of work that wait for a thread, by pool."""
        return {name: pool._inner._work_queue.qsize() for name, pool in self._pools.items()}

    async def fill(self, work: Callable[[list[str]], list[list[int]]], texts: list[str]) -> Any:
        """Do this work for a fill-in-the-middle prompt."""
        is_long = sum(map(len, texts)) > LONG_CHARS
        pool = self._pools["long_prompt" if is_long else "fill_in_the_middle"]
        return await make_async(work, executor=pool)(texts)

    def set_apart(self, serving: Any) -> None:
        """Give the routes /tokenize and /detokenize a renderer with their own thread."""
        pool = self._pools["tokenize"]
        apart = copy.copy(self._renderer)
        apart._executor = pool
        apart._tokenize_prompt_async = make_async(self._renderer._tokenize_prompt, executor=pool)
        apart._async_tokenizer_decode = make_async(self._decode, executor=pool)
        if isinstance(apart, HfRenderer):
            apart._apply_chat_template_async = make_async(safe_apply_chat_template, executor=pool)
        serving.renderer = apart
        serving.online_renderer = copy.copy(serving.online_renderer)
        serving.online_renderer.renderer = apart

    def _decode(self, token_ids: list[int]) -> str:
        """Return the text of these tokens, as the tokenizer's `decode` does. That holds the
        interpreter, for 1M tokens a second; the library's `decode_batch` does not."""
        tokenizer = self._renderer.get_tokenizer()
        if not isinstance(tokenizer, PreTrainedTokenizerFast) or (
            tokenizer.clean_up_tokenization_spaces
        ):
            return str(self._renderer._decode(token_ids))
        (text,) = tokenizer._tokenizer.decode_batch([token_ids], skip_special_tokens=False)
        return str(text)
