"""Decode streams that begin with the end of a prompt write what those with all of it write."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import tokenizers.decoders
from hypothesis import assume, given
from hypothesis import strategies as st

from qwenfleet.cluster.models.sources import locate
from qwenfleet.deployments.vllm_adapter import detokenizer
from qwenfleet.deployments.vllm_adapter.detokenizer import TAIL_TOKENS, TailStreams

MODELS = ("tiny-qwen3-moe", "smollm2-135m-instruct")
PARTIAL = "\N{REPLACEMENT CHARACTER}"
"""What a decoder writes for a part of a character."""
whole: Any = tokenizers.decoders.DecodeStream


@cache
def tokenizer(model: str) -> Any:
    return tokenizers.Tokenizer.from_file(str(Path(locate(model)) / "tokenizer.json"))


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """Other tests build front ends, which install our streams."""
    before = tokenizers.decoders.DecodeStream
    yield
    vars(tokenizers.decoders)["DecodeStream"] = before


def texts(streams: Any, model: str, prompt: list[int], output: list[int], skips: bool) -> list[str]:
    """What a client reads after each token, as vLLM's detokenizer makes it."""
    stream = streams(ids=prompt, skip_special_tokens=skips)
    pieces = []
    for token in output:
        try:
            pieces.append(stream.step(tokenizer(model), token) or "")
        except Exception as error:  # vLLM begins a new stream after this one
            return [*pieces, str(error)]
    return pieces


@pytest.mark.parametrize("model", MODELS)
@given(data=st.data())
def test_the_text_is_that_of_a_stream_with_the_whole_prompt(
    model: str, data: st.DataObject
) -> None:
    prompt = tokenizer(model).encode(data.draw(st.text(min_size=TAIL_TOKENS), label="prompt")).ids
    assume(not tokenizer(model).decode(prompt).endswith(PARTIAL))
    output = tokenizer(model).encode(data.draw(st.text(), label="answer")).ids
    output = output[data.draw(st.integers(0, 2), label="tokens cut from its start") :]
    skips = data.draw(st.booleans(), label="skips special tokens")
    ours = TailStreams(whole)
    assert texts(ours, model, prompt, output, skips) == texts(whole, model, prompt, output, skips)


def test_of_a_prompt_that_ends_within_a_character_at_most_the_tail_is_repeated() -> None:
    """vLLM's own detokenizer repeats all of such a prompt, which only token ids can be."""
    model = MODELS[1]
    *prompt, last = tokenizer(model).encode("x y " * 500 + "\N{MUSICAL SYMBOL G CLEF}").ids
    (text,) = texts(TailStreams(whole), model, prompt, [last], skips=True)
    (all_of_it,) = texts(whole, model, prompt, [last], skips=True)
    assert text.endswith("\N{MUSICAL SYMBOL G CLEF}")
    assert len(text) <= 2 * TAIL_TOKENS
    assert len(all_of_it) > 1000


def test_a_stream_gets_no_more_than_the_tail_of_a_long_prompt() -> None:
    seen: list[Any] = []

    def record(**keywords: Any) -> None:
        seen.append(keywords)

    ours = TailStreams(record)
    ours(ids=list(range(1_000_000)), skip_special_tokens=True)
    ours()
    assert seen == [
        {"ids": list(range(1_000_000 - TAIL_TOKENS, 1_000_000)), "skip_special_tokens": True},
        {"ids": None, "skip_special_tokens": False},
    ]


def test_our_streams_are_installed_once_in_a_process() -> None:
    vars(tokenizers.decoders)["DecodeStream"] = whole
    detokenizer.install()
    installed = tokenizers.decoders.DecodeStream
    detokenizer.install()
    assert tokenizers.decoders.DecodeStream is installed
    assert isinstance(installed, TailStreams)
