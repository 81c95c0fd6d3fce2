"""What the plugin does to grammars in a core, without an engine."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
import xgrammar
from vllm.v1.engine.core import EngineCore
from vllm.v1.structured_output import StructuredOutputManager
from vllm.v1.structured_output.backend_xgrammar import XgrammarGrammar

from qwenfleet.deployments.vllm_adapter import grammar_plugin
from qwenfleet.deployments.vllm_adapter.compile_pool import CompilePool
from qwenfleet.deployments.vllm_adapter.grammar_plugin import UTILITY

VOCABULARY = ["<end>", "a", "b"]


@pytest.fixture(autouse=True, scope="module")
def registered():
    """Patch vLLM in this process for good, as in a core's process."""
    grammar_plugin.register()


def grammar(text):
    vocabulary = xgrammar.TokenizerInfo(VOCABULARY, stop_token_ids=[0])
    compiled = xgrammar.GrammarCompiler(vocabulary).compile_grammar(text)
    return XgrammarGrammar(
        matcher=xgrammar.GrammarMatcher(compiled), vocab_size=len(VOCABULARY), ctx=compiled
    )


def run(made, tokens):
    """Let a grammar take tokens as a core does; returns how many it took."""
    mask = xgrammar.allocate_token_bitmask(1, len(VOCABULARY))
    for position in range(tokens):
        made.fill_bitmask(mask, 0)
        if not made.accept_tokens("x", [1]):
            return position
    return tokens


def test_a_grammar_that_takes_too_much_of_the_loop_ends_its_request():
    assert run(grammar('root ::= root root | "a"'), 2000) < 600


def test_a_plain_grammar_goes_on():
    assert run(grammar('root ::= "a"* "b"'), 2000) == 2000


def test_a_grammar_that_rejects_is_rejected_as_before():
    assert not grammar('root ::= "b"').accept_tokens("x", [1])


def test_a_request_that_has_ended_is_not_compiled():
    manager = object.__new__(StructuredOutputManager)
    ended: Any = SimpleNamespace(request_id="x", is_finished=lambda: True)
    with pytest.raises(ValueError, match="x ended before its grammar"):
        StructuredOutputManager._create_grammar(manager, ended)


def test_a_cores_grammars_compile_in_our_pool_and_the_core_reports_it():
    def original(manager):
        manager.executor = ThreadPoolExecutor(max_workers=3)

    manager = object.__new__(StructuredOutputManager)
    grammar_plugin._own_pool(original)(manager)
    assert isinstance(manager.executor, CompilePool)
    assert manager.executor._num_threads == 3
    core = SimpleNamespace(structured_output_manager=manager)
    assert getattr(EngineCore, UTILITY)(core) == [0.0, 0, 0, 0.0]
    without = SimpleNamespace(structured_output_manager=SimpleNamespace())
    assert getattr(EngineCore, UTILITY)(without) == []


def test_registering_twice_patches_once():
    before = (StructuredOutputManager.__init__, XgrammarGrammar.accept_tokens)
    grammar_plugin.register()
    assert before == (StructuredOutputManager.__init__, XgrammarGrammar.accept_tokens)
