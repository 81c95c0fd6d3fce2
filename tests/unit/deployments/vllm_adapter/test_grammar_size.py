"""What is counted of a schema or grammar before it is compiled."""

from __future__ import annotations

import json

import pytest

from qwenfleet.cluster.config.grammar import GrammarConfig
from qwenfleet.deployments.ingress.grammar_errors import GrammarInvalid, GrammarTooCostly
from qwenfleet.deployments.vllm_adapter.grammar_size import Kind, Size, check, measure

LIMITS = GrammarConfig(max_bytes=1000, max_properties=3, max_choices=4)


def test_properties_and_choices_count_at_any_depth() -> None:
    leaf = {"type": "object", "properties": {"a": {"enum": [1, 2, 3]}, "b": {}}}
    schema = {"properties": {"x": {"items": leaf}}, "anyOf": [{"$ref": "#/$defs/y"}, leaf]}
    assert measure(Kind.JSON, json.dumps(schema)) == Size(len(json.dumps(schema)), 5, 8)


def test_the_schemas_of_a_requests_tools_count_together() -> None:
    tool = {"type": "json_schema", "json_schema": {"properties": {"a": {}, "b": {}}}}
    tags = [{"begin": "<a>", "content": tool}, {"begin": "<b>", "content": tool}]
    found = measure(Kind.STRUCTURAL_TAG, json.dumps({"format": {"tags": tags}}))
    assert (found.properties, found.choices) == (4, 2)


def test_alternatives_of_a_grammar_are_choices() -> None:
    assert measure(Kind.GRAMMAR, 'root ::= "a" | "b" | "ü"') == Size(25, choices=3)


@pytest.mark.parametrize(
    ("kind", "text", "words"),
    [
        (Kind.REGEX, "a" * 1001, "has 1001 bytes, above the limit of 1000 (gateway.grammar.max_b"),
        (Kind.REGEX, "ü" * 501, "has 1002 bytes"),
        (Kind.GRAMMAR, "|" * 4, "has 5 choices, above the limit of 4 (gateway.grammar.max_choices"),
        (Kind.JSON, json.dumps({"enum": [1] * 5}), "JSON schema has 5 choices"),
        (
            Kind.JSON,
            json.dumps({"properties": {name: {} for name in "abcd"}}),
            "has 4 properties, above the limit of 3 (gateway.grammar.max_properties)",
        ),
    ],
)
def test_a_refusal_names_the_kind_the_value_and_the_limit(
    kind: Kind, text: str, words: str
) -> None:
    with pytest.raises(GrammarTooCostly) as caught:
        check(kind, text, LIMITS)
    assert words in str(caught.value)


def test_text_beyond_the_limit_is_not_read() -> None:
    with pytest.raises(GrammarTooCostly, match="1201 bytes"):
        check(Kind.JSON, "[" * 1201, LIMITS)


@pytest.mark.parametrize("text", ["{", "[" * 900, '{"a": 1,}'])
def test_json_that_cannot_be_read_is_the_clients_fault(text: str) -> None:
    with pytest.raises(GrammarInvalid):
        check(Kind.JSON, text, LIMITS)


def test_half_a_surrogate_pair_is_the_clients_fault() -> None:
    with pytest.raises(GrammarInvalid, match="not Unicode"):
        check(Kind.REGEX, "a\ud800", LIMITS)


def test_nesting_beyond_pythons_recursion_is_the_clients_fault() -> None:
    with pytest.raises(GrammarInvalid, match="nested too deeply"):
        check(Kind.JSON, "[" * 100_000 + "]" * 100_000, GrammarConfig())


def test_what_people_send_is_within_the_default_limits() -> None:
    properties = {f"argument_{i}": {"type": "string", "description": "x" * 200} for i in range(10)}
    tool = {"type": "object", "properties": properties}
    check(Kind.STRUCTURAL_TAG, json.dumps({"tags": [{"content": tool}] * 150}), GrammarConfig())
