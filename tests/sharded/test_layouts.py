"""Every layout generates the same greedy text as one process, token by token, over the gateway."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import httpx
import pytest

pytestmark = pytest.mark.integration

TOLERANCE = 1e-3
"""Largest difference of a logprob, in float32: sums over ranks have another order."""
PROMPTS = (
    "def reverse(text):",
    "The quick brown fox jumps over the lazy dog. " * 8,
    "x",
    "class Tree:\n    def __init__(self, left, right):\n",
)


@dataclass(frozen=True)
class Step:
    """One greedy token: it and the runner-up, with their logprobs."""

    token: str
    logprob: float
    runner_up: float

    @property
    def is_near_tie(self) -> bool:
        return self.logprob - self.runner_up <= TOLERANCE


def greedy(url, model, prompt):
    body = {"model": model, "prompt": prompt, "max_tokens": 48, "temperature": 0, "logprobs": 2}
    answer = httpx.post(f"{url}/v1/completions", json=body | {"ignore_eos": True}, timeout=300)
    assert answer.status_code == 200, answer.text
    logprobs = answer.json()["choices"][0]["logprobs"]
    return [
        Step(token, logprob, sorted(top.values())[-2])
        for token, logprob, top in zip(
            logprobs["tokens"],
            logprobs["token_logprobs"],
            logprobs["top_logprobs"],
            strict=True,
        )
    ]


def expect_alike(one, other):
    """Compare token by token up to a near-tie, after which two texts may differ."""
    assert len(one) == len(other) == 48
    for index, (a, b) in enumerate(zip(one, other, strict=True)):
        if a.token != b.token:
            assert a.is_near_tie, (index, a, b)
            assert b.is_near_tie, (index, a, b)
            return
        assert a.logprob == pytest.approx(b.logprob, abs=TOLERANCE), index


@pytest.mark.parametrize("layout", ["tp2", "tp2-ep", "dp2-ep"])
def test_a_sharded_engine_generates_what_one_process_generates(layouts, layout):
    for prompt in PROMPTS:
        expect_alike(greedy(layouts.url, "tp1", prompt), greedy(layouts.url, layout, prompt))


def test_requests_go_to_both_data_parallel_ranks(layouts, expect):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: greedy(layouts.url, "dp2-ep", f"{n} bottles"), range(16)))

    def used():
        found = re.findall(
            r'^ray_vllm_prefix_cache_queries_total\{[^}]*engine="(\d)"[^}]*model_name="dp2-ep"'
            r"[^}]*\} ([\d.e+]+)$",
            layouts.metrics(),
            re.MULTILINE,
        )
        return {rank for rank, queries in found if float(queries) > 0}

    expect(lambda: used() == {"0", "1"}, 60, "queries of both ranks")


def test_a_differing_token_that_is_not_a_near_tie_is_found():
    one = [Step("a", -0.1, -3.0)] * 48
    with pytest.raises(AssertionError):
        expect_alike(one, [Step("b", -0.1, -3.0), *one[1:]])
    expect_alike(one, [Step("a", -0.1005, -3.0), *one[1:]])
    tie = Step("a", -0.7, -0.7005)
    expect_alike([tie, *one[1:]], [Step("b", -0.7, -0.7005), *one[1:]])
