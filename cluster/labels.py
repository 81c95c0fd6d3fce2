"""Closed sets of words that code, metrics, alerts, logs and spans share: each set stands here once.

`metrics.CLOSED` lists those that label metrics. The order of members is part of the contract: the
page of a model's engines numbers their states by it.
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
    """The core is dead, and its host lived to say so."""
    RESET = "reset"
    """The connection closed without a word: the host or its node is lost."""
    SILENT = "silent"
    """The host says nothing: frozen, or nothing crosses the network."""
    FROZEN = "frozen"
    """The host lives and its core makes no progress."""
    DRAINED = "drained"
    """The engine was asked to leave."""
    REFUSED = "refused"
    """The engine lives and will not run this attempt."""


class Decision(StrEnum):
    """What routing did with a request."""

    SENT = "sent"
    WAITS = "waits"
    MOVED = "moved"
    TRIAL = "trial"


class EngineState(StrEnum):
    """What an engine says of itself."""

    STARTING = "starting"
    READY = "ready"
    QUARANTINED = "quarantined"
    """Its core makes no progress; gateways send it nothing new."""
    DRAINING = "draining"


class StartPhase(StrEnum):
    """The parts of an engine's start."""

    QUEUED = "waiting for its turn"
    HELD = "waiting"
    """A node of the engine is closed to new engines."""
    STARTING = "starting"
    FINDING_MODEL = "finding the model"
    IMPORTING_VLLM = "importing vLLM"
    READING_CONFIG = "reading the model's configuration"
    IMPORTING_VLLM_IN_CORE = "importing vLLM in the core"
    LOADING = "loading the model"
    WARMING_UP = "warming up"


class FinishReason(IntEnum):
    """Why a core ended a request, by vLLM's numbers: FinishReason of vllm/v1/engine/__init__.py
    (0.32)."""

    STOP = 0
    LENGTH = 1
    ABORT = 2
    """A core that is shut down says so of all that it runs."""
    ERROR = 3
    REPETITION = 4
