"""PlainText: a tokenizer that reads every text as text, also the names of special tokens.

A tokenizer finds its added tokens in a text before it does anything else. Its option
`encode_special_tokens` leaves those alone that are marked as special, and Qwen's tokens for
fill-in-the-middle and tools are not. So this is a second tokenizer with the same vocabulary, rules
and merges, and without added tokens. Both share the vocabulary, so it takes no memory.
"""

from __future__ import annotations

from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast


class PlainText:
    """Encodes texts; threads may share it."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        """Raises ValueError for a tokenizer whose vocabulary has its added tokens as words."""
        whole = tokenizer.backend_tokenizer
        self.special: dict[str, int] = dict(tokenizer.get_added_vocab())
        """Ids of the added tokens, by name."""
        plain = Tokenizer(whole.model)
        for rule in ("normalizer", "pre_tokenizer"):
            found = getattr(whole, rule)
            if found is not None:
                setattr(plain, rule, found)
        self._plain: Any = plain
        self._check()

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Return the token ids of each text. The interpreter is free meanwhile."""
        batch = self._plain.encode_batch_fast(texts, add_special_tokens=False)
        return [encoding.ids for encoding in batch]

    def _check(self) -> None:
        ids = set(self.special.values())
        for name, found in zip(self.special, self.encode(list(self.special)), strict=True):
            if ids & set(found):
                raise ValueError(f"the text {name} is the same as the token of this name")


def plain_text_of(tokenizer: Any) -> PlainText | None:
    """Return a tokenizer of plain text; None if this tokenizer has none."""
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        return None
    try:
        return PlainText(tokenizer)
    except ValueError:
        return None
