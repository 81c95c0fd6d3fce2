"""Corpus: answers of Qwen's models, and the text and calls that a client should get for each.

Every expectation was meant by a person, and none was made by the reader that they test.
"""

from __future__ import annotations

from typing import Final

from tests.tool_calls.case import Case
from tests.tool_calls.cuts import CUTS
from tests.tool_calls.json_calls import JSON_CALLS
from tests.tool_calls.layout import LAYOUT
from tests.tool_calls.loose import LOOSE
from tests.tool_calls.prose import PROSE
from tests.tool_calls.typed import TYPED
from tests.tool_calls.values import VALUES

CASES: Final[tuple[Case, ...]] = LAYOUT + VALUES + PROSE + TYPED + JSON_CALLS + CUTS + LOOSE
"""Their names differ."""
