"""llama.cpp's /infill as a completion: what llama.vim and llama.vscode send, what is refused."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenfleet.cluster.config.limits import LimitsConfig
from qwenfleet.deployments.ingress import infill, policy
from qwenfleet.deployments.ingress.field_errors import FieldError

LIMITS = LimitsConfig()
VIM: dict[str, Any] = {
    "id_slot": 0,
    "input_prefix": "import os\n",
    "input_suffix": "\n\nmain()\n",
    "input_extra": [{"text": "A = 1\n", "time": [1, 2], "filename": "a.py"}],
    "prompt": "def main",
    "n_predict": 128,
    "stop": [],
    "n_indent": 4,
    "top_k": 40,
    "top_p": 0.90,
    "samplers": ["top_k", "top_p", "infill"],
    "stream": False,
    "cache_prompt": True,
    "t_max_prompt_ms": 500,
    "t_max_predict_ms": 1000,
    "response_fields": ["content", "timings/prompt_n", "truncated", "tokens_cached"],
}
"""A request of autoload/llama.vim."""
VSCODE: dict[str, Any] = {
    "id_slot": 0,
    "input_prefix": "",
    "input_suffix": "b",
    "input_extra": [],
    "prompt": "a",
    "n_predict": 128,
    "n_cmpl": 3,
    "top_k": 40,
    "top_p": 0.99,
    "stream": False,
    "samplers": ["top_k", "top_p", "infill"],
    "cache_prompt": True,
    "t_max_prompt_ms": 500,
    "t_max_predict_ms": 2500,
}
"""A request of llama.vscode's src/llama-server.ts."""
WARM_UP = {**VSCODE, "input_suffix": "", "prompt": "", "n_predict": 0, "samplers": []}
PLAIN = {"input_prefix": "a", "input_suffix": "b"}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)
NAMES = st.sampled_from([*VIM, *infill.SAMPLING, *infill.CARRIED, *infill.UNABLE, "n_cmpl", "n"])


def completion_of(fields: Any) -> dict[str, Any]:
    found = infill.completion_of(fields, LIMITS, 4096)
    policy.check("/v1/completions", found, LIMITS, 4096)
    return found


def test_a_request_of_llama_vim_is_a_completion() -> None:
    assert completion_of(VIM) == {
        "prompt": "import os\ndef main",
        "suffix": "\n\nmain()\n",
        "fim": {
            "repository": "myproject",
            "path": "filename",
            "files": [{"path": "a.py", "text": "A = 1\n"}],
        },
        "max_tokens": 128,
        "n": 1,
        "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        "temperature": 0,
        "top_k": 40,
        "top_p": 0.90,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
    }
    wanted = infill.wanted(VIM, "coder", LIMITS)
    assert (wanted.least_indent, wanted.most_s, wanted.answers) == (4, 1.0, 1)
    assert wanted.paths == tuple(VIM["response_fields"])


def test_llama_vscode_gets_several_answers_that_differ() -> None:
    found = completion_of(VSCODE)
    assert found["n"] == infill.wanted(VSCODE, "coder", LIMITS).answers == 3
    assert (found["temperature"], found["min_p"]) == (1.0, infill.INFILL_MIN_P)


def test_an_editor_that_warms_a_cache_asks_for_no_text() -> None:
    found = completion_of(WARM_UP)
    assert (found["max_tokens"], infill.wanted(WARM_UP, "coder", LIMITS).max_tokens) == (1, 0)


@pytest.mark.parametrize("bound", [{}, {"n_predict": -1}, {"n_predict": None}])
def test_an_answer_without_a_bound_may_fill_the_context(bound: Any) -> None:
    assert completion_of(PLAIN | bound)["max_tokens"] == 4096
    assert infill.wanted(PLAIN | bound, "coder", LIMITS).max_tokens == -1
    unknown = infill.completion_of(PLAIN | bound, LIMITS, None)
    assert unknown["max_tokens"] == infill.UNKNOWN_CONTEXT


def test_what_is_left_out_is_left_to_the_model() -> None:
    found = completion_of(PLAIN | {"seed": -1, "temperature": 0.3, "stop": ["x"], "n": 2})
    assert not {"top_k", "top_p", "min_p", "seed", "model"} & set(found)
    assert (found["temperature"], found["stop"], found["n"]) == (0.3, ["x"], 2)
    assert completion_of(PLAIN | {"seed": 7, "model": "coder"})["seed"] == 7


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"input_suffix": "b"}, "'input_prefix' is missing. Send a string"),
        ({"input_prefix": "a"}, "'input_suffix' is missing. Send a string"),
        (PLAIN | {"prompt": [1]}, "'prompt' is a list of 1. Send a string"),
        (PLAIN | {"input_extra": [{"filename": "a"}]}, "'input_extra[0].text' is missing"),
        (PLAIN | {"input_extra": ["a"]}, "'input_extra[0]' is a string of 1"),
        (PLAIN | {"input_extra": [{}] * 257}, "gateway.limits.context_files"),
        (PLAIN | {"samplers": "kp"}, "'samplers' is a string of 2. Send a list"),
        (PLAIN | {"n_predict": "many"}, "'n_predict' is 'many'. Send a whole number"),
        (PLAIN | {"grammar": 'root ::= "a"'}, "'grammar' is not taken here"),
        (PLAIN | {"lora": [{"id": 0, "scale": 0.5}]}, "'lora' is not taken here"),
        (PLAIN | {"n_probs": 3}, "'n_probs' is not taken here"),
        (PLAIN | {"n_cmpl": 99}, "'n' is 99, above the limit of 32"),
        (PLAIN | {"response_fields": [1]}, "'response_fields' is 1. Send a string"),
    ],
)
def test_what_cannot_be_honored_is_refused_with_a_sentence(fields: Any, words: str) -> None:
    def ask() -> None:
        infill.wanted(fields, "coder", LIMITS)
        completion_of(fields)

    with pytest.raises(FieldError) as caught:
        ask()
    assert words in str(caught.value)


@pytest.mark.parametrize(("name", "values"), infill.UNABLE.items())
def test_values_that_change_nothing_are_taken(name: str, values: Any) -> None:
    for value in (None, *values):
        assert completion_of(PLAIN | {name: value})


@given(st.dictionaries(NAMES, JSON, max_size=4))
def test_any_json_is_a_completion_or_an_error_of_a_field(fields: Any) -> None:
    for asked in (fields, PLAIN | fields, VIM | fields):
        with suppress(FieldError):
            infill.wanted(asked, "coder", LIMITS)
            completion_of(asked)
