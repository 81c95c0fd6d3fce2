"""Detokenizer: streams of text that begin with the end of a prompt instead of all of it.

vLLM gives a request's whole prompt to its decode stream, which decodes it on the event loop before
each of the first tokens: 4 s for 1M tokens, times `n`. Only the last tokens can change how the next
one is written, because decoders look at neighbors: the other bytes of a character, or a space.

vLLM internals used here (0.32): FastIncrementalDetokenizer, which looks up
`tokenizers.decoders.DecodeStream` at each request.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import tokenizers.decoders

TAIL_TOKENS: Final = 32
"""A character has at most 4 tokens, one for each byte. vLLM's slow detokenizer looks at 5
(`INITIAL_INCREMENTAL_DETOKENIZATION_OFFSET`)."""


class TailStreams:
    """Stands in for a class of decode streams."""

    def __init__(self, streams: Any) -> None:
        self._streams = streams

    def __call__(self, ids: Sequence[int] | None = None, skip_special_tokens: bool = False) -> Any:
        """Return a decode stream that continues the last tokens of `ids`."""
        tail = None if ids is None else list(ids[-TAIL_TOKENS:])
        return self._streams(ids=tail, skip_special_tokens=skip_special_tokens)


def install() -> None:
    """Make the detokenizers of this process use TailStreams."""
    streams: Any = tokenizers.decoders.DecodeStream
    if not isinstance(streams, TailStreams):
        vars(tokenizers.decoders)["DecodeStream"] = TailStreams(streams)
