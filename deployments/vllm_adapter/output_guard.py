"""Output guard: one request's failure in AsyncLLM's output handler ends that request only.

The handler ends for good at the first exception, and with it every stream of the gateway.

vLLM internals used here (0.32): OutputProcessor (process_outputs, propagate_error, _finish_request,
request_states), OutputProcessorOutput, RayPrometheusStatLogger.record.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from vllm.v1.engine import EngineCoreOutput
from vllm.v1.engine.output_processor import OutputProcessor, OutputProcessorOutput
from vllm.v1.metrics.ray_wrappers import RayPrometheusStatLogger

logger = logging.getLogger(__name__)


class GuardedOutputProcessor(OutputProcessor):
    """Processes one output at a time."""

    def __init__(self, *arguments: Any, on_failure: Callable[[str], None], **keywords: Any) -> None:
        """`on_failure` gets the id of a request before vLLM's app learns that it failed."""
        super().__init__(*arguments, **keywords)
        self._on_failure = on_failure

    def process_outputs(
        self,
        engine_core_outputs: list[EngineCoreOutput],
        engine_core_timestamp: float | None = None,
        iteration_stats: Any = None,
        weight_version: str | None = None,
    ) -> OutputProcessorOutput:
        whole = OutputProcessorOutput(request_outputs=[], reqs_to_abort=[])
        for output in engine_core_outputs:
            try:
                part = super().process_outputs(
                    [output], engine_core_timestamp, iteration_stats, weight_version
                )
            except Exception as error:
                extra = {"request": output.request_id}
                logger.exception("failed to process an output", extra=extra)
                self._end(output.request_id, error)
                whole.reqs_to_abort.append(output.request_id)
            else:
                whole.request_outputs += part.request_outputs
                whole.reqs_to_abort += part.reqs_to_abort
        return whole

    def propagate_error(self, e: Exception) -> None:
        for request_id in list(self.request_states):
            self._on_failure(request_id)
        super().propagate_error(e)

    def _end(self, request_id: str, error: Exception) -> None:
        self._on_failure(request_id)
        state = self.request_states.get(request_id)
        if state is None:
            return
        with suppress(Exception):  # its state may be what is broken
            self._finish_request(state)
        self.request_states.pop(request_id, None)
        if state.queue is not None:
            state.queue.put(error)


class GuardedStatLogger(RayPrometheusStatLogger):
    """A failure to count must not end streams either."""

    def record(self, *arguments: Any, **keywords: Any) -> None:
        try:
            super().record(*arguments, **keywords)
        except Exception:
            logger.exception("failed to record vLLM's metrics")
