"""The plugin's patches without an engine, and a guard that names changed parts of vLLM."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import torch
import xgrammar
from vllm.sampling_params import SamplingParams, StructuredOutputsParams
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.request import Request
from vllm.v1.structured_output import StructuredOutputManager
from vllm.v1.structured_output.backend_xgrammar import XgrammarGrammar
from vllm.v1.worker.gpu_input_batch import CachedRequestState, InputBatch

from qwenfleet.deployments.vllm_adapter.resume_plugin import (
    PLUGIN,
    PROMPT_TOKENS,
    RECEIVED_TOKENS,
    PositionedGenerator,
    received_tokens,
    register,
)
from qwenfleet.deployments.wire.tokens import TokenIds

FINGERPRINTS = {
    "plugins/__init__.py": {
        "load_general_plugins": "67f32f278f28",
    },
    "v1/core/sched/output.py": {
        "NewRequestData.from_request": "b70bab0e2cea",
    },
    "v1/core/sched/scheduler.py": {
        "Scheduler._handle_blocked_waiting_request": "dd4a9f81bc43",
        "Scheduler._make_cached_request_data": "a61ed736a614",
    },
    "v1/core/sched/utils.py": {
        "check_stop": "80832b6a460a",
    },
    "v1/engine/core.py": {
        "EngineCore.preprocess_add_request": "e6bf2ff24e9e",
    },
    "v1/request.py": {
        "Request.append_output_token_ids": "133cccbed081",
        "Request.from_engine_core_request": "d11a7e0efb2b",
    },
    "v1/structured_output/__init__.py": {
        "StructuredOutputManager._create_grammar": "2a19be6d08aa",
        "StructuredOutputManager._get_constraint_bounds": "3a0e2266e5ba",
        "StructuredOutputManager.accept_tokens": "da26a968c560",
        "StructuredOutputManager.grammar_init": "c29fde18475b",
    },
    "v1/worker/gpu/model_runner.py": {
        "GPUModelRunner.add_requests": "a105e9ec3a7d",
    },
    "v1/worker/gpu/states.py": {
        "RequestState.add_request": "7d5ef6940ad3",
    },
    "v1/worker/gpu_input_batch.py": {
        "CachedRequestState.__post_init__": "6fe9d3004a87",
        "InputBatch.add_request": "69b11c2d7b60",
        "InputBatch.update_async_output_token_ids": "dc525367c099",
    },
    "v1/worker/gpu_model_runner.py": {
        "GPUModelRunner._bookkeeping_sync": "0964b12e4769",
        "GPUModelRunner._sample": "5e9c214297f1",
        "GPUModelRunner._update_states": "5a99c7d085dc",
    },
}
"""Fingerprints of everything that is patched or that the patches rely on."""

PROMPT = list(range(100, 140))
BLOCK = 16
VOCABULARY = ["a", "b", "c", "think", "</think>", "<end>"]
A, B, C, THINK, THOUGHT, END = range(len(VOCABULARY))


@pytest.fixture(autouse=True, scope="module")
def registered():
    """Patch vLLM in this process for good, as in a core's process."""
    init_none_hash(sha256)
    register()


@cache
def text_of(module: str) -> str:
    spec = importlib.util.find_spec("vllm")
    assert spec is not None
    assert spec.submodule_search_locations
    source = Path(spec.submodule_search_locations[0], module)
    assert source.is_file(), f"vllm/{module} was removed: review resume_plugin"
    return source.read_text()


@cache
def tree_of(module: str) -> ast.Module:
    return ast.parse(text_of(module))


def fingerprint(module: str, name: str) -> str:
    """Hash of a function's text without comments and empty lines."""
    body: list[ast.stmt] = tree_of(module).body
    for part in name.split("."):
        kinds = (ast.ClassDef, ast.FunctionDef)
        found = [node for node in body if isinstance(node, kinds) and node.name == part]
        assert found, f"{part} was removed from vllm/{module}: review resume_plugin"
        body = found[-1].body
    text = ast.get_source_segment(text_of(module), found[-1])
    assert text is not None
    lines = [line.strip() for line in text.splitlines()]
    code = "\n".join(line for line in lines if line and not line.startswith("#"))
    return hashlib.sha256(code.encode()).hexdigest()[:12]


@pytest.mark.parametrize(
    ("module", "name"), [(module, name) for module, names in FINGERPRINTS.items() for name in names]
)
def test_what_the_plugin_patches_and_relies_on_is_unchanged(module, name):
    dotted = f"vllm.{module.removesuffix('.py').replace('/', '.')}.{name}"
    assert fingerprint(module, name) == FINGERPRINTS[module][name], (
        f"{dotted} changed since vLLM 0.32.0: review resume_plugin, then set its fingerprint here"
    )


def test_vllm_finds_the_plugin_among_installed_packages():
    (found,) = entry_points(group="vllm.general_plugins", name=PLUGIN)
    assert found.load() is register


def core_request(received=None, **params):
    extra_args = None if received is None else {RECEIVED_TOKENS: received, "of_the_client": 1}
    return EngineCoreRequest(
        request_id="r",
        prompt_token_ids=list(PROMPT),
        mm_features=None,
        sampling_params=SamplingParams(max_tokens=50, extra_args=extra_args, **params),
        pooling_params=None,
        arrival_time=0.0,
        lora_request=None,
        cache_salt=None,
        data_parallel_rank=None,
    )


def to_request(core):
    return Request.from_engine_core_request(core, get_request_block_hasher(BLOCK, sha256))


def test_a_resumed_request_is_as_if_it_had_made_the_tokens_itself():
    tokens = list(range(200, 230))
    core = core_request(tokens)
    resumed, own = to_request(core), to_request(core_request())
    own.append_output_token_ids(tokens)
    assert list(resumed.output_token_ids) == tokens
    assert list(resumed.all_token_ids) == PROMPT + tokens
    assert resumed.num_prompt_tokens == len(PROMPT)
    assert resumed.max_tokens == 50
    assert resumed.block_hashes == own.block_hashes
    assert len(resumed.block_hashes) == 70 // BLOCK
    assert core.prompt_token_ids == PROMPT


def test_a_packed_request_is_as_if_it_had_come_with_lists():
    tokens = list(range(200, 230))
    core, plain = core_request(TokenIds(tokens).pack()), to_request(core_request(tokens))
    core.prompt_token_ids = None
    core.sampling_params.extra_args[PROMPT_TOKENS] = TokenIds(PROMPT).pack()
    packed = to_request(core)
    assert packed.prompt_token_ids == PROMPT
    assert list(packed.all_token_ids) == list(plain.all_token_ids)
    assert list(packed.output_token_ids) == tokens
    assert packed.block_hashes == plain.block_hashes
    assert packed.sampling_params.extra_args == plain.sampling_params.extra_args


def test_a_packed_prompt_does_not_go_on_to_the_workers():
    core = core_request()
    core.prompt_token_ids = None
    core.sampling_params.extra_args = {PROMPT_TOKENS: TokenIds(PROMPT).pack()}
    request = to_request(core)
    assert list(request.all_token_ids) == PROMPT
    assert request.sampling_params.extra_args is None


def test_a_resumed_request_does_not_ask_for_prompt_logprobs_again():
    assert to_request(core_request([1], prompt_logprobs=2)).sampling_params.prompt_logprobs is None
    assert to_request(core_request(prompt_logprobs=2)).sampling_params.prompt_logprobs == 2


def test_a_dump_of_the_cores_state_shows_no_received_token():
    request = to_request(core_request([123456, 234567]))
    shown = repr(request.sampling_params)
    assert "<2 tokens>" in shown
    assert "123456" not in shown
    assert request.sampling_params.extra_args["of_the_client"] == 1


def test_registering_twice_patches_once():
    before = (
        Request.from_engine_core_request,
        StructuredOutputManager._create_grammar,
        CachedRequestState.__post_init__,
        InputBatch.update_async_output_token_ids,
    )
    register()
    assert before == (
        Request.from_engine_core_request,
        StructuredOutputManager._create_grammar,
        CachedRequestState.__post_init__,
        InputBatch.update_async_output_token_ids,
    )


class Backend:
    """XGrammar over a vocabulary of six tokens."""

    def compile_grammar(self, request_type, grammar_spec, stop_token_ids=None):
        vocabulary = xgrammar.TokenizerInfo(VOCABULARY, stop_token_ids=[END])
        compiled = xgrammar.GrammarCompiler(vocabulary).compile_regex(grammar_spec)
        matcher = xgrammar.GrammarMatcher(compiled)
        return XgrammarGrammar(matcher=matcher, vocab_size=len(VOCABULARY), ctx=compiled)


class Reasoner:
    """Reasoning ends with the token THOUGHT."""

    def __init__(self, tokenizer):
        pass

    def is_reasoning_end(self, token_ids):
        return THOUGHT in token_ids

    def is_reasoning_end_streaming(self, token_ids, delta_token_ids):
        return THOUGHT in delta_token_ids


def manager(reasoner=None):
    made = object.__new__(StructuredOutputManager)
    made.backend = Backend()  # type: ignore[assignment]  # the part that a new grammar needs
    made.enable_in_reasoning = False
    made.reasoner_cls = reasoner
    made.tokenizer = None
    return made


def allowed_next(grammar):
    mask = xgrammar.allocate_token_bitmask(1, len(VOCABULARY))
    grammar.fill_bitmask(mask, 0)
    return {token for token in range(len(VOCABULARY)) if mask[0, 0] >> token & 1}


def grammar_behind(tokens, reasoner=None):
    request = to_request(
        core_request(tokens, structured_outputs=StructuredOutputsParams(regex="abc"))
    )
    grammar = manager(reasoner)._create_grammar(request)
    return grammar, request.structured_output_request.reasoning_ended


def test_a_grammar_continues_after_the_received_tokens():
    assert allowed_next(grammar_behind(None)[0]) == {A}
    assert allowed_next(grammar_behind([A])[0]) == {B}
    assert allowed_next(grammar_behind([A, B, C])[0]) == {END}


def test_a_grammar_does_not_see_the_reasoning_before_it():
    grammar, reasoning_ended = grammar_behind([THINK, B, THOUGHT, A], Reasoner)
    assert allowed_next(grammar) == {B}
    assert reasoning_ended


def test_a_grammar_waits_until_the_reasoning_ends():
    grammar, reasoning_ended = grammar_behind([THINK, B, C], Reasoner)
    assert allowed_next(grammar) == {A}
    assert not reasoning_ended


def test_tokens_that_a_grammar_rejects_fail_its_compilation_and_are_not_shown():
    with pytest.raises(ValueError, match="grammar of r rejects") as refused:
        grammar_behind([A, C])
    assert str([A, C]) not in str(refused.value)


def state_of(request, req_id="r"):
    params = request.sampling_params
    generator = None if params.seed is None else torch.Generator().manual_seed(params.seed)
    return CachedRequestState(
        req_id=req_id,
        prompt_token_ids=request.prompt_token_ids,
        mm_features=[],
        sampling_params=params,
        generator=generator,
        block_ids=([],),
        num_computed_tokens=0,
        output_token_ids=[],
    )


def test_a_worker_starts_with_the_received_tokens():
    state = state_of(to_request(core_request([7, 8])))
    assert state.output_token_ids == [7, 8]
    assert state.num_tokens == len(PROMPT) + 2
    assert state_of(to_request(core_request())).output_token_ids == []


def test_a_worker_has_its_own_copy_of_the_tokens():
    request = to_request(core_request([7, 8]))
    state_of(request).output_token_ids.append(9)
    assert received_tokens(request.sampling_params) == [7, 8]


def batch_of(*states):
    batch = InputBatch(
        max_num_reqs=4,
        max_model_len=64,
        max_num_batched_tokens=64,
        device=torch.device("cpu"),
        vocab_size=16,
        block_sizes=[BLOCK],
        max_num_blocks_per_req=[4],
    )
    for state in states:
        batch.add_request(state)
    return batch


def draws(batch):
    batch.update_async_output_token_ids()
    return [
        torch.randint(0, 2**31, (1,), generator=batch.generators[index]).item()
        for index in sorted(batch.generators)
    ]


def test_a_resumed_seeded_request_draws_what_it_would_have_drawn():
    undisturbed = state_of(to_request(core_request(seed=5)), "u")
    batch = batch_of(undisturbed)
    drawn = []
    for token in range(6):
        drawn += draws(batch)
        undisturbed.output_token_ids.append(token)
    for cut in range(1, 6):
        resumed = batch_of(state_of(to_request(core_request(list(range(cut)), seed=5))))
        assert draws(resumed) == drawn[cut : cut + 1]
    assert len(set(drawn)) == 6


def test_the_noise_of_a_partial_prefill_is_not_missed_later():
    batch = batch_of(state_of(to_request(core_request(seed=5))))
    first = draws(batch)
    generator = batch.generators[0]
    generator.set_offset(generator.get_offset() - 4)
    assert draws(batch) == first


def test_each_seed_draws_its_own_tokens_whatever_else_is_in_the_batch():
    states = [
        state_of(to_request(core_request(seed=seed)), str(seed)) for seed in (1, 2, 2**63 - 1)
    ]
    drawn = draws(batch_of(*states))
    assert len(set(drawn)) == 3
    assert drawn[1:2] == draws(batch_of(states[1]))


def test_a_request_without_a_seed_gets_no_generator():
    assert batch_of(state_of(to_request(core_request()))).generators == {}
    assert isinstance(state_of(to_request(core_request(seed=0))).generator, PositionedGenerator)
