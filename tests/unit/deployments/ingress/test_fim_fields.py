"""The field `fim`, and which requests are quick."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenfleet.cluster.config.limits import LimitsConfig
from qwenfleet.deployments.ingress import policy
from qwenfleet.deployments.ingress.field_errors import BeyondContext, FieldError
from qwenfleet.deployments.ingress.fim_fields import (
    QUICK_BYTES,
    QUICK_TOKENS,
    at_start,
    is_quick,
)

LIMITS = LimitsConfig(context_files=2, option_chars=20)
FILE = {"path": "a.py", "text": "A = 1"}
WHOLE = {"repository": "lib", "path": "b.py", "files": [FILE]}
MIDDLE = {"prompt": "a", "suffix": "b"}


@pytest.mark.parametrize("value", [WHOLE, {"repository": "", "path": ""}, WHOLE | {"files": None}])
def test_a_repository_is_allowed(value: Any) -> None:
    policy.check("/v1/completions", MIDDLE | {"fim": value}, LIMITS, 4096)


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ("lib", "'fim' is a string of 3. Send an object"),
        ({"path": "b.py"}, "'fim.repository' is missing. Send a string"),
        (WHOLE | {"path": 3}, "'fim.path' is 3. Send a string"),
        (WHOLE | {"path": "x" * 21}, "'fim.path' has 21 characters, above the limit of 20"),
        (WHOLE | {"name": "lib"}, "'fim.name' is not taken here: it has repository, path, files"),
        (WHOLE | {"files": [FILE] * 3}, "gateway.limits.context_files"),
        (WHOLE | {"files": ["a.py"]}, "'fim.files[0]' is a string of 4"),
        (WHOLE | {"files": [{"path": "a.py"}]}, "'fim.files[0].text' is missing"),
        (WHOLE | {"files": [FILE | {"path": "x" * 21}]}, "'fim.files[0].path' has 21"),
        (WHOLE | {"files": [FILE | {"filename": "a"}]}, "'fim.files[0].filename' is not taken"),
    ],
)
def test_what_is_not_a_repository_is_named(value: Any, path: str) -> None:
    with pytest.raises(FieldError) as caught:
        policy.check("/v1/completions", MIDDLE | {"fim": value}, LIMITS, 4096)
    assert path in str(caught.value)


def test_files_count_as_text_of_the_prompt() -> None:
    large = WHOLE | {"files": [FILE | {"text": "x" * 8 * 4096}]}
    with pytest.raises(BeyondContext, match="maximum context length is 4096"):
        policy.check("/v1/completions", MIDDLE | {"fim": large}, LIMITS, 4096)


@pytest.mark.parametrize(
    ("fields", "body_bytes", "expected"),
    [
        (MIDDLE, 100, True),
        ({"prompt": "a", "suffix": "", "fim": WHOLE}, 100, True),
        (MIDDLE | {"max_tokens": QUICK_TOKENS}, QUICK_BYTES, True),
        (MIDDLE | {"max_tokens": QUICK_TOKENS + 1}, 100, False),
        (MIDDLE | {"max_tokens": QUICK_TOKENS // 2, "n": 3}, 100, False),
        (MIDDLE, QUICK_BYTES + 1, False),
        ({"prompt": "a"}, 100, False),
        ({"prompt": "a", "suffix": ""}, 100, False),
        (MIDDLE | {"prompt": None}, 100, True),
        (MIDDLE | {"prompt": [1, 2]}, 100, False),
        ({"messages": []}, 100, False),
    ],
)
def test_short_ones_are_quick(fields: Any, body_bytes: int, expected: bool) -> None:
    assert is_quick(fields, body_bytes) is expected


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["repository", "path", "files", "text", "x"]), inner)
    ),
    max_leaves=8,
)


@given(JSON, JSON, JSON)
def test_any_json_is_allowed_or_an_error_of_a_field(fim: Any, suffix: Any, tokens: Any) -> None:
    fields = {"prompt": "a", "suffix": suffix, "fim": fim, "max_tokens": tokens}
    with suppress(FieldError):
        policy.check("/v1/completions", fields, LIMITS, 4096)
        is_quick(fields, 100)
        at_start(fields)
