"""Cost of longer contexts in a layout, and the load that an SLO allows. Pure."""

from __future__ import annotations

from typing import Final

from qwenfleet.cluster.planner.plan import Candidate
from qwenfleet.cluster.planner.request import PlanRequest
from qwenfleet.cluster.planner.speed import shape_of
from qwenfleet.cluster.speed import prediction
from qwenfleet.cluster.speed.prediction import ContextRow

CONTEXTS: Final = (8192, 32_768, 131_072, 262_144)
"""Contexts in the table, besides the longest possible one."""


def by_context(one: Candidate, request: PlanRequest) -> list[ContextRow]:
    """Rows for one engine full of sequences of each length with cached prompts: as many as the KV
    cache and `max_num_seqs` allow."""
    longest = one.max_model_len
    contexts = [*(context for context in CONTEXTS if context < longest), longest]
    ranks = one.layout.data_parallel_size
    return prediction.context_table(
        shape_of(request, one.layout),
        lambda context: min(one.memory.sequences(context), one.max_num_seqs) * ranks,
        contexts,
        request.load.output_tokens,
        request.routing_skew,
    )


def within_slo(one: Candidate, request: PlanRequest) -> int | None:
    """Most concurrent requests of one engine that fit and meet the SLO's time per token at the slow
    end of the range; None without such an SLO."""
    if request.slo.tpot_s is None:
        return None
    load = request.load
    room = one.memory.sequences(load.sequence_tokens) * one.layout.data_parallel_size
    return prediction.most_sequences(
        shape_of(request, one.layout),
        load.prompt_tokens,
        load.output_tokens,
        request.slo.tpot_s,
        routing_skew=request.routing_skew,
        at_most=min(room, one.max_num_seqs * one.layout.data_parallel_size),
    )


def cells(row: ContextRow) -> list[str]:
    """Format a row: context, sequences, time per token, output tokens per second."""
    total = row.output_tokens_per_s
    return [
        f"{row.context_tokens:,}",
        f"{row.sequences:,}",
        "" if row.tpot_s is None else (row.tpot_s * 1000).text("ms"),
        "" if total is None else total.text(""),
    ]


def limit_sentence(one: Candidate, request: PlanRequest) -> str:
    """Say which `max_num_seqs` the written plan has, and why."""
    ranks = one.layout.data_parallel_size
    length = request.load.sequence_tokens
    share = -(-request.load.concurrency // (one.engines * ranks))
    where = "an engine" if ranks == 1 else "a data parallel rank"
    return (
        f"max_num_seqs is {one.max_num_seqs:,}: the KV cache of {where} holds "
        f"{one.memory.sequences(length):,} requests of {length:,} tokens, and its share of the "
        f"load is {share:,}."
    )


def slo_sentence(one: Candidate, request: PlanRequest) -> str:
    """Say how many requests meet the SLO on time per token; empty without one."""
    most = within_slo(one, request)
    if most is None:
        return ""
    promised = f"{(request.slo.tpot_s or 0) * 1000:g} ms per token"
    end = "at the slow end of the range"
    if most == 0:
        return f"Predicted: not even one request at a time meets {promised} {end}."
    return (
        f"Predicted: up to {most:,} concurrent requests of {request.load.prompt_tokens:,} + "
        f"{request.load.output_tokens:,} tokens on each engine meet {promised}, even {end}."
    )
