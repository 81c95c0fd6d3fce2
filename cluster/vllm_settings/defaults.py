"""Sizes that vLLM 0.32 uses, or that qwenfleet sets for it, each with its source. Pure."""

from __future__ import annotations

from typing import Final

UTILIZATION: Final = 0.9
"""Share of a GPU's memory that vLLM may use (`gpu_memory_utilization`). Deliberately below vLLM's
default of 0.92, so that the GPU contexts of other programs fit."""
BATCHED_TOKENS: Final = 8192
"""Tokens of one step: vLLM's default `max_num_batched_tokens` for a server on GPUs of 70 to 160 GiB
(`EngineArgs.get_batch_defaults`). On larger GPUs vLLM uses twice that, which the reserve covers."""
BLOCK_TOKENS: Final = 16
"""vLLM's KV block on CUDA; a sequence takes whole blocks."""
VOCAB_PADDING: Final = 64
"""vLLM 0.32 `vocab_parallel_embedding.py`, DEFAULT_VOCAB_PADDING_SIZE."""
