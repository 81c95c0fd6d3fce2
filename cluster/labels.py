"""Closed sets of values that code, metrics, alerts, logs and spans share, each defined here once.

`metrics.CLOSED` lists those that label metrics. The order of members is part of the contract: the
engines dashboard numbers the states by it.
"""

from __future__ import annotations

from enum import IntEnum, StrEnum


class Outcome(StrEnum):
    """How an HTTP request ended."""

    COMPLETED = "completed"
    REFUSED = "refused"
    NO_KEY = "no_key"
    WRONG_KEY = "wrong_key"
    UNAVAILABLE = "unavailable"
    FAILED = "failed"
    TIMED_OUT = "timed_out"
    CLIENT_DEADLINE = "client_deadline"
    ENGINE_LOST = "engine_lost"
    DISCONNECTED = "disconnected"


class Loss(StrEnum):
    """Why a request left its engine."""

    CORE_DIED = "core_died"
    """The engine host is alive and reported that its core died."""
    RESET = "reset"
    """The connection closed without a message: the host process or its node is lost."""
    SILENT = "silent"
    """The host sends nothing: it is frozen, or the network drops everything."""
    FROZEN = "frozen"
    """The host is alive, and its core makes no progress."""
    DRAINED = "drained"
    """The engine is draining."""
    REFUSED = "refused"
    """The engine is alive and refused this attempt."""


class Decision(StrEnum):
    """Routing decisions for a request."""

    SENT = "sent"
    WAITS = "waits"
    MOVED = "moved"
    TRIAL = "trial"


class EngineState(StrEnum):
    """The state that an engine reports."""

    STARTING = "starting"
    READY = "ready"
    QUARANTINED = "quarantined"
    """The core makes no progress; gateways send no new requests."""
    DRAINING = "draining"


class GatewayState(StrEnum):
    """The state that a gateway reports."""

    STARTING = "starting"
    READY = "ready"
    NO_ENGINE = "no engine"
    """It has started, and no engine of any model is usable."""
    DRAINING = "draining"


class StartPhase(StrEnum):
    """The phases of an engine's start."""

    QUEUED = "waiting for its turn"
    HELD = "waiting"
    """One of the engine's nodes does not accept new engines."""
    STARTING = "starting"
    FINDING_MODEL = "finding the model"
    IMPORTING_VLLM = "importing vLLM"
    READING_CONFIG = "reading the model's configuration"
    IMPORTING_VLLM_IN_CORE = "importing vLLM in the core"
    LOADING = "loading the model"
    WARMING_UP = "warming up"


class FinishReason(IntEnum):
    """Why a core ended a request. Numbers are vLLM's: FinishReason in vllm/v1/engine/__init__.py
    (0.32)."""

    STOP = 0
    LENGTH = 1
    ABORT = 2
    """Also sent for every running request when the core shuts down."""
    ERROR = 3
    REPETITION = 4
