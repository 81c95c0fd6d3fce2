"""Audit: one log line for each request that moved to another engine, or ended because it could not.

The lines have their own logger, so that an operator can route them to separate storage.
"""

from __future__ import annotations

import logging

from qwenfleet.deployments.dispatch.flight import Cut, Flight

logger = logging.getLogger(__name__)


def resumed(flight: Flight, cut: Cut, gap_s: float) -> None:
    """Log a request's first token from its new engine, `gap_s` seconds after its previous token."""
    assert flight.link is not None
    logger.info(
        "request resumed",
        extra={
            "request": flight.request_id,
            "model": None if flight.exchange is None else flight.exchange.model,
            "why": cut.loss.value,
            "reason": cut.reason,
            "from_engine": cut.engine,
            "to_engine": flight.link.engine,
            "attempt": flight.attempt,
            "tokens": len(flight.token_ids),
            "gap_s": round(gap_s, 4),
        },
    )


def not_resumed(flight: Flight, reason: str) -> None:
    """Log a request that ends instead of moving to another engine."""
    logger.warning(
        "request not resumed",
        extra={
            "request": flight.request_id,
            "model": None if flight.exchange is None else flight.exchange.model,
            "why": None if flight.cut is None else flight.cut.loss.value,
            "reason": reason,
            "from_engine": None if flight.cut is None else flight.cut.engine,
            "tokens": len(flight.token_ids),
            "core_deaths": flight.suspicion.core_deaths,
        },
    )
