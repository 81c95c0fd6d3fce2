"""A vLLM core resumes from received tokens as the core that made them would have continued.

Each parameter's request runs undisturbed, then again from each of its prefixes: tokens, logprobs
and ends must be the remaining ones. Float32, because another batch size flips near-ties in less
precise numbers.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionToolsParam
from vllm.sampling_params import (
    RepetitionDetectionParams,
    SamplingParams,
    StructuredOutputsParams,
)
from vllm.tool_parsers.structural_tag_registry import get_model_structural_tag
from vllm.v1.engine import EngineCoreOutput, FinishReason
from vllm.v1.engine.input_processor import InputProcessor
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

from qwenfleet.cluster.config.model import ModelConfig
from qwenfleet.cluster.models.sources import locate
from qwenfleet.deployments.engine_host.core import CoreStep
from qwenfleet.deployments.vllm_adapter.core import VllmCore
from qwenfleet.deployments.vllm_adapter.engine_args import engine_args
from qwenfleet.deployments.vllm_adapter.resume_plugin import RECEIVED_TOKENS
from qwenfleet.deployments.wire.frames import Submit
from qwenfleet.deployments.wire.tokens import TokenIds

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(480),
    # Prompt logprobs come as tensors, which vLLM makes over the bytes that it got.
    pytest.mark.filterwarnings("ignore:The given buffer is not writable"),
    # vLLM's client leaves its own to the garbage collector.
    pytest.mark.filterwarnings("ignore:Unclosed context:ResourceWarning"),
]

NUM_TOKENS = 24
MAX_MODEL_LEN = 256
PROMPT = "def parse(line: str) -> list[int]:\n"
LONG_PROMPT = PROMPT * 7
"""Longer than a step's 64 tokens and than a block's 128: its prefill comes in chunks."""
MODEL = ModelConfig(
    id="tiny",
    source="tiny-qwen3-moe",
    max_model_len=MAX_MODEL_LEN,
    kv_cache_gib=0.1,
    engine_args={"dtype": "float32", "max_num_batched_tokens": 64, "max_num_seqs": 40},
)


@dataclass
class Answer:
    """All that came back of one attempt."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[dict[int, float]] = field(default_factory=list)
    num_prompt_logprobs: int = 0
    finish_reason: int | None = None
    stop_reason: int | str | None = None

    def after(self, cut: int) -> Answer:
        return Answer(
            self.tokens[cut:], self.logprobs[cut:], 0, self.finish_reason, self.stop_reason
        )

    def __eq__(self, other: object) -> bool:
        assert isinstance(other, Answer)
        return (
            self.tokens == other.tokens
            and self.finish_reason == other.finish_reason
            and self.stop_reason == other.stop_reason
            and self.num_prompt_logprobs == other.num_prompt_logprobs
            and self.logprobs == [pytest.approx(row, abs=1e-4) for row in other.logprobs]
        )


class Engine:
    """A core, and the part of a gateway that makes its requests."""

    def __init__(self) -> None:
        path = locate(MODEL.source)
        config = engine_args(MODEL, path).create_engine_config()
        self._processor = InputProcessor(config)
        tokenizer = self._processor.tokenizer
        assert tokenizer is not None
        self.encode: Callable[[str], list[int]] = tokenizer.encode
        self.decode: Callable[[list[int]], str] = tokenizer.decode
        self._core = VllmCore(MODEL, path)
        self._runner = asyncio.Runner()
        self._runner.run(self._core.start())
        self._ids = itertools.count()
        self._encoder = MsgpackEncoder(size_threshold=1 << 40)
        self._decoder = MsgpackDecoder(EngineCoreOutput)

    def shutdown(self) -> None:
        self._core.shutdown()
        self._runner.close()
        del self._core
        gc.collect()

    def submit(self, prompt: list[int], received: list[int], **params: Any) -> Submit:
        """An attempt as a gateway sends it. Each has a cache of its own, as another core has."""
        name = f"r{next(self._ids)}"
        sampling = SamplingParams(**{"temperature": 0.0, "max_tokens": NUM_TOKENS} | params)
        request = self._processor.process_inputs(
            name, {"prompt_token_ids": prompt}, sampling, supported_tasks=("generate",)
        )
        request.prompt_token_ids = None
        return Submit(
            request_id=name,
            attempt=0,
            prompt_token_ids=TokenIds(prompt),
            request=cast(bytes, self._encoder.encode(request)[0]),
            output_token_ids=TokenIds(received),
            cache_salt=name,
        )

    def run(self, *submits: Submit) -> list[Answer]:
        """Run attempts side by side."""
        return self._runner.run(self._run(submits))

    def ask(self, prompt: str = PROMPT, **params: Any) -> Answer:
        return self.run(self.submit(self.encode(prompt), [], **params))[0]

    def resume_everywhere(self, whole: Answer, prompt: str, **params: Any) -> list[Answer]:
        ids = self.encode(prompt)
        return self.run(*(self.submit(ids, whole.tokens[:cut], **params) for cut in cuts(whole)))

    def step(self) -> CoreStep:
        """Run one probe step on an idle core."""
        self._runner.run(self._core.probe())
        return self._runner.run(self._core.next_step())

    def cpu_s(self) -> float | None:
        return self._core.cpu_s()

    async def _run(self, submits: tuple[Submit, ...]) -> list[Answer]:
        answers = {submit.request_id: Answer() for submit in submits}
        for submit in submits:
            await self._core.add(submit.request_id, submit)
        while any(answer.finish_reason is None for answer in answers.values()):
            for output in (await self._core.next_step()).outputs:
                answer = answers.get(output.wire_id, Answer())  # or a probe's
                answer.tokens += output.token_ids
                answer.finish_reason, answer.stop_reason = output.finish_reason, output.stop_reason
                if output.extra is not None:
                    self._note_logprobs(answer, self._decoder.decode(output.extra))
        return list(answers.values())

    def _note_logprobs(self, answer: Answer, output: EngineCoreOutput) -> None:
        new, of_prompt = output.new_logprobs, output.new_prompt_logprobs_tensors
        for ids, values in zip(new.logprob_token_ids, new.logprobs, strict=True) if new else ():
            answer.logprobs.append(dict(zip(ids.tolist(), values.tolist(), strict=True)))
        if of_prompt is not None:
            answer.num_prompt_logprobs += len(of_prompt.logprobs)


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with pytest.MonkeyPatch.context() as environment:
        # The other integration tests' fleet runs on the same cores.
        environment.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        engine = Engine()
    yield engine
    engine.shutdown()


@pytest.fixture(scope="module")
def greedy(engine: Engine) -> str:
    """What the model says to PROMPT; parameters that refuse or end it are made of this."""
    return engine.decode(engine.ask().tokens)


def cuts(whole: Answer) -> range:
    return range(1, len(whole.tokens))


def structured(**constraint: Any) -> dict[str, Any]:
    return {"structured_outputs": StructuredOutputsParams(**constraint), "max_tokens": 60}


def tools_tag() -> str:
    """What vLLM makes of a strict tool and `tool_choice: required` for Qwen3-Coder."""
    function = {
        "name": "grep",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"mode": {"enum": ["lines", "files"]}, "deep": {"type": "boolean"}},
            "required": ["mode", "deep"],
            "additionalProperties": False,
        },
    }
    tool = ChatCompletionToolsParam(type="function", function=function)
    tag = get_model_structural_tag("qwen_3_coder", [tool], "required", reasoning=False)
    assert tag is not None
    return tag.model_dump_json()


SCHEMA = {
    "type": "object",
    "properties": {"name": {"enum": ["alpha", "beta"]}, "lines": {"enum": [1, 20, 300]}},
    "required": ["name", "lines"],
    "additionalProperties": False,
}
EBNF = """
root ::= "[" item ("," item){3} "]"
item ::= "yes" | "no" | "perhaps"
"""
SAMPLED = {"temperature": 1.0, "top_p": 0.95, "top_k": 40, "min_p": 0.01, "seed": 7}
CHANGING: dict[str, Callable[[Engine, str], dict[str, Any]]] = {
    "presence penalty": lambda e, text: {"presence_penalty": 1.5},
    "frequency penalty": lambda e, text: {"frequency_penalty": 0.8},
    "repetition penalty": lambda e, text: {"repetition_penalty": 1.3},
    "bad word": lambda e, text: {"bad_words": [text[4]]},
    "bad word of four tokens": lambda e, text: {"bad_words": [text[8:12]]},
    "stop token": lambda e, text: {"stop_token_ids": e.encode(text[15])},
    "min tokens": lambda e, text: {"stop_token_ids": e.encode(text[:2]), "min_tokens": 14},
    "logit bias": lambda e, text: {"logit_bias": {e.encode(text[3])[0]: -100, 65: 3}},
    "allowed tokens": lambda e, text: {"allowed_token_ids": e.encode("abcdefgh")},
    "repetition detection": lambda e, text: {
        "allowed_token_ids": e.encode("ab"),
        "bad_words": ["aa", "bb"],
        "repetition_detection": RepetitionDetectionParams(max_pattern_size=2, min_count=7),
    },
    "max tokens": lambda e, text: {"max_tokens": 9},
    "seed": lambda e, text: {"temperature": 0.8, "seed": 1},
    "seed with all of sampling": lambda e, text: SAMPLED,
    "seed with penalties": lambda e, text: SAMPLED | {"presence_penalty": 1.0, "logprobs": 2},
    "json schema": lambda e, text: structured(json=SCHEMA),
    "json object": lambda e, text: structured(json_object=True) | SAMPLED,
    "regex": lambda e, text: structured(regex=r"(ab|cd){4}[0-9]{3}x"),
    "choice": lambda e, text: structured(choice=["north by northwest", "south-east"]),
    "ebnf": lambda e, text: structured(grammar=EBNF),
    "strict required tool": lambda e, text: structured(structural_tag=tools_tag()),
    "strict required tool, sampled": lambda e, text: (
        SAMPLED | structured(structural_tag=tools_tag()) | {"repetition_penalty": 1.05}
    ),
}


@pytest.mark.parametrize("name", CHANGING)
def test_parameter_state_continues_after_any_cut(engine, greedy, name):
    params = CHANGING[name](engine, greedy)
    whole = engine.ask(**params)
    assert engine.decode(whole.tokens) != greedy, "this parameter changes nothing"
    assert len(cuts(whole)) >= 5
    resumed = engine.resume_everywhere(whole, PROMPT, **params)
    assert resumed == [whole.after(cut) for cut in cuts(whole)]


@pytest.mark.parametrize("params", [{}, {"logprobs": 3}, {"logprobs": 2, "prompt_logprobs": 2}])
@pytest.mark.parametrize("prompt", [PROMPT, LONG_PROMPT], ids=["short", "long"])
def test_greedy_text_and_logprobs_continue_after_any_cut(engine, prompt, params):
    """At 256 tokens of context the long prompt is cut short by it, and not by max_tokens."""
    whole = engine.ask(prompt, **params)
    assert whole.finish_reason == FinishReason.LENGTH
    assert len(whole.tokens) == min(NUM_TOKENS, MAX_MODEL_LEN - len(engine.encode(prompt)))
    assert len(whole.logprobs) == (len(whole.tokens) if params else 0)
    assert bool(whole.num_prompt_logprobs) == ("prompt_logprobs" in params)
    resumed = engine.resume_everywhere(whole, prompt, **params)
    assert resumed == [whole.after(cut) for cut in cuts(whole)]


@pytest.mark.parametrize("name", ["presence penalty", "json schema"])
def test_tokens_moved_into_the_prompt_give_different_text(engine, greedy, name):
    """The control: these comparisons detect a wrong resume."""
    params = CHANGING[name](engine, greedy)
    whole = engine.ask(**params)
    most = params.get("max_tokens", NUM_TOKENS)
    moved = engine.run(
        *(
            engine.submit(
                engine.encode(PROMPT) + whole.tokens[:cut],
                [],
                **params | {"max_tokens": most - cut},
            )
            for cut in cuts(whole)
        )
    )
    assert moved != [whole.after(cut) for cut in cuts(whole)]


def test_resume_works_with_output_in_the_prefix_cache(engine):
    """The core that made a block of output may get its request back; vLLM asserts that no new
    request has more cached than its prompt."""
    ids = engine.encode(PROMPT)
    params = {"max_tokens": 160}
    whole = engine.ask(**params)
    late = (100, 130, 159)
    assert len(ids) + late[1] > 128, "a block holds output"
    resumed = engine.run(*(engine.submit(ids, whole.tokens[:cut], **params) for cut in late))
    assert resumed == [whole.after(cut) for cut in late]


def test_a_seeded_prefill_may_come_in_chunks(engine):
    """vLLM's own generators raise then on CPU, in the core."""
    params = SAMPLED | {"max_tokens": 8}
    whole = engine.ask(LONG_PROMPT, **params)
    resumed = engine.resume_everywhere(whole, LONG_PROMPT, **params)
    assert resumed == [whole.after(cut) for cut in cuts(whole)]
    assert engine.ask(LONG_PROMPT, **params | {"seed": 8}) != whole


def test_tokens_rejected_by_the_grammar_fail_only_their_request(engine):
    params = structured(choice=["north by northwest", "south-east"])
    ids = engine.encode(PROMPT)
    bad = engine.submit(ids, engine.encode("west"), **params)
    good = engine.submit(ids, engine.encode("south"), **params)
    refused, answer = engine.run(bad, good)
    assert refused == Answer(finish_reason=int(FinishReason.ERROR))
    assert engine.decode(answer.tokens).startswith("-east")
    assert engine.ask().tokens


def test_a_client_cannot_claim_received_tokens(engine, greedy):
    forged = {RECEIVED_TOKENS: engine.encode("x" * 10)}
    assert engine.decode(engine.ask(extra_args=forged).tokens) == greedy


@pytest.mark.parametrize(("prompt", "num_received"), [(PROMPT, NUM_TOKENS), (LONG_PROMPT, 11)])
def test_attempt_without_remaining_tokens_is_refused(engine, prompt, num_received):
    ids = engine.encode(prompt)
    with pytest.raises(ValueError, match=f"^no tokens left to generate after {num_received}$"):
        engine.run(engine.submit(ids, ids[:num_received]))


def test_an_unseeded_sample_that_moves_stays_right_in_distribution(engine):
    """Without a seed no two cores draw alike: what must stay is the distribution of each token."""
    ids = engine.encode(PROMPT)
    received = engine.ask().tokens[:5]
    (row,) = engine.run(engine.submit(ids, received, max_tokens=6, logprobs=3))[0].logprobs[:1]
    best = dict(sorted(row.items(), key=lambda item: -item[1])[:3])
    total = sum(map(math.exp, best.values()))
    params = {"temperature": 1.0, "top_k": 3, "max_tokens": 6}
    drawn = Counter(
        answer.tokens[0]
        for _ in range(10)
        for answer in engine.run(*(engine.submit(ids, received, **params) for _ in range(40)))
    )
    assert drawn.keys() <= best.keys()
    expected = {token: 400 * math.exp(value) / total for token, value in best.items()}
    chi_square = sum((drawn[token] - n) ** 2 / n for token, n in expected.items())
    assert chi_square < 25, (drawn, expected)  # by chance once in 270,000 runs


def test_an_unseeded_sample_that_moves_has_its_whole_length(engine):
    params = {"temperature": 1.0, "ignore_eos": True}
    whole = engine.ask(**params)
    resumed = engine.resume_everywhere(whole, PROMPT, **params)
    lengths = [cut + len(answer.tokens) for cut, answer in zip(cuts(whole), resumed, strict=True)]
    assert set(lengths) == {NUM_TOKENS}


def test_a_probe_is_a_step_and_costs_cpu_time(engine):
    before = engine.cpu_s()
    for _ in range(20):
        assert all(output.wire_id.startswith("probe-") for output in engine.step().outputs)
    assert 0 < engine.cpu_s() - before < 10
