from dataclasses import replace

import pytest

from qwenfleet.cluster.models.catalog import CODER_480B, INSTRUCT_2507
from qwenfleet.cluster.plan_errors import PlanError
from qwenfleet.cluster.vllm_settings.long_context import (
    check_long_context,
    yarn_notes,
    yarn_overrides,
)

NATIVE = 262_144
GOOD = {
    "rope_type": "yarn",
    "rope_theta": 10_000_000,
    "factor": 4.0,
    "original_max_position_embeddings": NATIVE,
}


def without(key):
    return {name: value for name, value in GOOD.items() if name != key}


@pytest.mark.parametrize(
    ("context", "factor"), [(NATIVE + 1, 2.0), (524_288, 2.0), (600_000, 3.0), (1_048_576, 4.0)]
)
def test_yarn_keeps_rope_theta_and_covers_the_context(context, factor):
    parameters = yarn_overrides(CODER_480B, context)["rope_parameters"]
    assert parameters == {**GOOD, "factor": factor}


@pytest.mark.parametrize("context", [1, 32_768, NATIVE])
def test_the_models_own_context_needs_no_method(context):
    assert yarn_overrides(CODER_480B, context) == {}
    assert yarn_notes(CODER_480B, context) == []


def test_more_than_four_times_the_model_is_refused():
    with pytest.raises(PlanError, match=r"1,048,577 tokens is more than 4 times .* 1,048,576"):
        yarn_overrides(CODER_480B, 4 * NATIVE + 1)


def test_notes_mention_dual_chunk_attention():
    reported = " ".join(yarn_notes(INSTRUCT_2507, 1_010_000))
    assert "no backend in vLLM since 0.11" in reported
    assert "short ones too" in reported


def test_printed_overrides_pass_the_check():
    for context in (NATIVE, NATIVE + 1, 1_010_000):
        overrides = yarn_overrides(CODER_480B, context)
        check_long_context(CODER_480B, context, {"hf_overrides": overrides}, {})


@pytest.mark.parametrize("length", [None, 1, NATIVE])
def test_the_models_own_context_is_served_without_a_method(length):
    check_long_context(CODER_480B, length, {}, {})


@pytest.mark.parametrize(
    ("length", "args", "env", "words"),
    [
        (NATIVE + 1, {}, {}, "no long-context method"),
        (NATIVE + 1, {}, {"VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1"}, "only silences"),
        (
            1_010_000,
            {"hf_overrides": {"dual_chunk_attention_config": None}},
            {},
            "hides that limit",
        ),
        (
            NATIVE,
            {"hf_overrides": {"dual_chunk_attention_config": {"chunk_size": 131_072}}},
            {},
            "no backend",
        ),
        (NATIVE, {"hf_overrides": {"rope_scaling": GOOD}}, {}, "drops rope_theta"),
        (NATIVE, {"hf_overrides": {"rope_parameters": without("rope_theta")}}, {}, "silently"),
        (
            1_048_576,
            {"hf_overrides": {"rope_parameters": {**GOOD, "factor": 2.0}}},
            {},
            "above the 524,288 tokens",
        ),
        (NATIVE + 1, {"hf_overrides": {"rope_parameters": without("factor")}}, {}, "262,144"),
    ],
)
def test_a_context_without_a_working_method_is_refused(length, args, env, words):
    with pytest.raises(PlanError, match=words):
        check_long_context(CODER_480B, length, args, env)


def test_a_model_with_yarn_in_its_files_needs_nothing_more():
    stretched = replace(CODER_480B, long_context_tokens=1_048_576)
    check_long_context(stretched, 1_000_000, {}, {})
    assert yarn_overrides(stretched, 1_000_000) == {}
