"""Grammar gate: AsyncLLM that checks a request's grammar before an engine gets it.

vLLM compiles in its front end only as far as reading goes, on the event loop, and several times for
one request. Here its reading is left out (`leave_out_reading`), and GrammarChecks does all of it in
another process.

vLLM internals used here (0.32): AsyncLLM.add_request, SamplingParams.structured_outputs,
get_structured_output_key, choice_as_grammar, grammar_is_likely_lark, check_json_nesting,
backend_xgrammar.validate_xgrammar_grammar and has_xgrammar_unsupported_json_features.
"""

from __future__ import annotations

import json
import logging
from typing import Any

import xgrammar
from vllm.exceptions import VLLMClientError, VLLMValidationError
from vllm.sampling_params import SamplingParams, StructuredOutputsParams, check_json_nesting
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.output_processor import RequestOutputCollector
from vllm.v1.structured_output import backend_xgrammar
from vllm.v1.structured_output.backend_types import StructuredOutputOptions
from vllm.v1.structured_output.request import get_structured_output_key
from vllm.v1.structured_output.utils import choice_as_grammar, grammar_is_likely_lark

from qwenfleet.cluster.config.grammar import GrammarConfig
from qwenfleet.cluster.errors import FleetError
from qwenfleet.deployments.ingress.exchange import current_exchange
from qwenfleet.deployments.ingress.grammar_errors import GrammarInvalid, GrammarTooCostly
from qwenfleet.deployments.vllm_adapter.error_answers import refusal_of
from qwenfleet.deployments.vllm_adapter.grammar_checks import GrammarChecks
from qwenfleet.deployments.vllm_adapter.grammar_compiler import Settings
from qwenfleet.deployments.vllm_adapter.grammar_process import GrammarProcess
from qwenfleet.deployments.vllm_adapter.grammar_size import Kind

logger = logging.getLogger(__name__)


class GrammarGate:
    """Checks the grammars of one model's requests."""

    def __init__(self, checks: GrammarChecks, limits: GrammarConfig) -> None:
        self._checks = checks
        self._limits = limits

    async def start(self) -> None:
        """Start the compiler before the first request needs it."""
        await self._checks.start()

    async def verify(self, params: SamplingParams) -> None:
        """Raise a RequestError for a constraint that no engine may get."""
        constraint = params.structured_outputs
        if constraint is None or constraint.all_constraints_none():
            return
        if constraint.json_object is not False:  # which vLLM refuses
            await self._checks.check(*_read(constraint, self._limits))

    def close(self) -> None:
        self._checks.close()


class GatedLLM(AsyncLLM):
    """AsyncLLM whose requests pass the gate."""

    gate: GrammarGate | None = None
    """Set once the model's tokenizer is known."""

    async def add_request(
        self, request_id: str, prompt: Any, params: Any, *rest: Any, **named: Any
    ) -> RequestOutputCollector:
        """Add a request that an engine may get. A refusal is the exchange's to answer, with its own
        status; of vLLM's error, a stream would show a part or nothing."""
        try:
            if isinstance(params, SamplingParams) and self.gate is not None:
                await self.gate.verify(params)
            return await super().add_request(request_id, prompt, params, *rest, **named)
        except FleetError as error:
            _end_exchange(error)
            raise VLLMValidationError(str(error)) from error
        except Exception as error:
            if not isinstance(error, VLLMClientError):  # it may be a fault of ours
                logger.warning("failed to add a request", exc_info=error)
            _end_exchange(refusal_of(error))
            raise

    def shutdown(self, timeout: float | None = None) -> None:
        if self.gate is not None:
            self.gate.close()
        super().shutdown(timeout)


def _end_exchange(error: FleetError | None) -> None:
    exchange = current_exchange()
    if exchange is not None and error is not None:
        exchange.fail(error)


def settings_of(tokenizer: Any, vocabulary: int, *, any_whitespace: bool) -> Settings:
    """What this model's engines compile with, as vLLM's XgrammarBackend makes it."""
    info = xgrammar.TokenizerInfo.from_huggingface(tokenizer, vocab_size=vocabulary)
    return Settings(info.serialize_json(), any_whitespace)


def gate_of(llm: AsyncLLM, limits: GrammarConfig) -> GrammarGate:
    """The gate of one model. Reads the whole vocabulary: a second of CPU time."""
    config = llm.vllm_config
    structured = config.structured_outputs_config
    settings = settings_of(
        llm.renderer.get_tokenizer(),
        config.model_config.get_vocab_size(),
        any_whitespace=not structured.disable_any_whitespace,
    )
    return GrammarGate(GrammarChecks(limits, GrammarProcess(settings)), limits)


def leave_out_reading() -> None:
    """Make vLLM's front end check only what is quick, in this process, from now on."""
    backend_xgrammar.validate_xgrammar_grammar = check_shape


def check_shape(sampling_params: SamplingParams) -> None:
    """Do what vLLM's validate_xgrammar_grammar does, except for reading the grammar. Raises
    VLLMValidationError."""
    constraint = sampling_params.structured_outputs
    if constraint is None:
        return
    if constraint.choice:
        constraint.grammar, constraint.choice = choice_as_grammar(constraint.choice), None
    elif constraint.json:
        check_json_nesting(constraint.json)
        schema = constraint.json
        if isinstance(schema, str):
            schema = _loads(schema, "Invalid JSON grammar specification.")
        if backend_xgrammar.has_xgrammar_unsupported_json_features(schema):
            raise VLLMValidationError(
                "The provided JSON schema contains features not supported by xgrammar."
            )
    elif constraint.structural_tag:
        check_json_nesting(constraint.structural_tag, structural_tag=True)
        _loads(constraint.structural_tag, "Invalid structural tag specification.")


def _loads(text: str, problem: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise VLLMValidationError(problem) from error


def _read(constraint: StructuredOutputsParams, limits: GrammarConfig) -> tuple[Kind, str, str]:
    """The constraint's kind, and its syntax and text as vLLM's backend compiles it. Raises
    GrammarRefused."""
    if constraint.choice is not None:
        if len(constraint.choice) > limits.max_choices:
            problem = f"has {len(constraint.choice)} choices"
            setting = "gateway.grammar.max_choices"
            raise GrammarTooCostly(Kind.CHOICE, problem, str(limits.max_choices), setting)
        return Kind.CHOICE, "ebnf", choice_as_grammar(constraint.choice)
    option, text = get_structured_output_key(constraint)
    match option:
        case StructuredOutputOptions.JSON:
            return Kind.JSON, "json", text
        case StructuredOutputOptions.JSON_OBJECT:
            return Kind.JSON, "json", '{"type": "object"}'
        case StructuredOutputOptions.REGEX:
            return Kind.REGEX, "regex", text
        case StructuredOutputOptions.STRUCTURAL_TAG:
            return Kind.STRUCTURAL_TAG, "structural_tag", _tag(text)
        case _:
            syntax = "lark" if grammar_is_likely_lark(text) else "ebnf"
            return Kind.GRAMMAR, syntax, text


def _tag(text: str) -> str:
    """A structural tag in xgrammar's own form; vLLM also takes an older one."""
    try:
        tag = json.loads(text)
        if "structures" not in tag:
            return text
        items = [
            xgrammar.StructuralTagItem(
                begin=item["begin"], schema=json.dumps(item["schema"]), end=item["end"]
            )
            for item in tag["structures"]
        ]
        made = xgrammar.StructuralTag.from_legacy_structural_tag(items, tag["triggers"])
        return str(made.model_dump_json())
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise GrammarInvalid(Kind.STRUCTURAL_TAG, f"it cannot be read ({error})") from error
