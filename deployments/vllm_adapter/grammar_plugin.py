"""Grammars in a core: none keeps others waiting, and none takes more of its loop than it may.

Gateways have refused what is known to be slow. This holds for the rest: a grammar of another
gateway version, or one that is slow only after the tokens that a model happens to make.

What of vLLM 0.32 is patched, in the core's process, and why:

- `StructuredOutputManager.__init__`: its thread pool becomes a CompilePool.
- `StructuredOutputManager._create_grammar`: compiles nothing for a request that has ended.
- `XgrammarGrammar.fill_bitmask` and `accept_tokens`: count the seconds that a request's grammar
  takes of the loop. Beyond its share, `accept_tokens` rejects, and the scheduler ends this one
  request with an error.
- `EngineCore.qwenfleet_compile_pool`: a new method, which the host calls as a utility.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable
from typing import Any, Final

from vllm.v1.engine.core import EngineCore
from vllm.v1.request import Request
from vllm.v1.structured_output import StructuredOutputManager
from vllm.v1.structured_output.backend_xgrammar import XgrammarGrammar

from qwenfleet.deployments.vllm_adapter.compile_pool import CompilePool

logger = logging.getLogger(__name__)

MARK: Final = "qwenfleet_grammars"
UTILITY: Final = "qwenfleet_compile_pool"
FREE_S: Final = 1.0
"""Seconds of the loop that every request's grammar may take: the first mask of a state is slow."""
SHARE_S: Final = 0.01
"""Seconds per token beyond that. JSON schemas and tools take 0.01 to 0.05 ms (xgrammar 0.2.8)."""


def register() -> None:
    """Patch vLLM in this process; more than one call patches once."""
    _wrap(StructuredOutputManager, "__init__", _own_pool)
    _wrap(StructuredOutputManager, "_create_grammar", _skip_ended)
    _wrap(XgrammarGrammar, "fill_bitmask", _count_mask)
    _wrap(XgrammarGrammar, "accept_tokens", _count_tokens)
    setattr(EngineCore, UTILITY, _compile_pool)


def _wrap(owner: type, name: str, make: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    original = getattr(owner, name)
    if not hasattr(original, MARK):
        wrapper = functools.wraps(original)(make(original))
        setattr(wrapper, MARK, True)
        setattr(owner, name, wrapper)


def _compile_pool(core: EngineCore) -> list[float]:
    """The state of the core's pool as a list, which vLLM sends without a type."""
    pool = getattr(core.structured_output_manager, "executor", None)
    return list(pool.state()) if isinstance(pool, CompilePool) else []


def _own_pool(original: Callable[..., None]) -> Callable[..., None]:
    def __init__(manager: StructuredOutputManager, *arguments: Any, **named: Any) -> None:
        original(manager, *arguments, **named)
        pool = getattr(manager, "executor", None)  # missing without a tokenizer
        if pool is not None:
            pool.shutdown(wait=False)
            manager.executor = CompilePool(pool._max_workers)  # type: ignore[assignment]

    return __init__


def _skip_ended(original: Callable[..., Any]) -> Callable[..., Any]:
    def _create_grammar(manager: StructuredOutputManager, request: Request) -> Any:
        if request.is_finished():
            raise ValueError(f"{request.request_id} ended before its grammar was compiled")
        return original(manager, request)

    return _create_grammar


def _count_mask(original: Callable[..., None]) -> Callable[..., None]:
    def fill_bitmask(grammar: XgrammarGrammar, *arguments: Any) -> None:
        began_at = time.thread_time()
        original(grammar, *arguments)
        _spend(grammar, time.thread_time() - began_at)

    return fill_bitmask


def _count_tokens(original: Callable[..., bool]) -> Callable[..., bool]:
    def accept_tokens(grammar: XgrammarGrammar, request_id: str, tokens: list[int]) -> bool:
        began_at = time.thread_time()
        is_accepted = original(grammar, request_id, tokens)
        spent_s = _spend(grammar, time.thread_time() - began_at)
        if is_accepted and spent_s > FREE_S + SHARE_S * grammar.num_processed_tokens:
            extra = {
                "request": request_id,
                "seconds": round(spent_s, 2),
                "tokens": grammar.num_processed_tokens,
            }
            logger.warning("ended a request whose grammar is too slow", extra=extra)
            return False
        return is_accepted

    return accept_tokens


def _spend(grammar: XgrammarGrammar, seconds: float) -> float:
    total: float = getattr(grammar, MARK, 0.0) + seconds
    setattr(grammar, MARK, total)
    return total
