"""Ranking of the layouts that fit, and the reason for the choice in words. Pure."""

from __future__ import annotations

from typing import Final

from qwenfleet.cluster.hardware.accelerators import ComputeDtype
from qwenfleet.cluster.models.geometry import KVDtype
from qwenfleet.cluster.planner.memory import SEQUENCES, expert_split
from qwenfleet.cluster.planner.plan import Candidate, SloVerdict, middle
from qwenfleet.cluster.planner.request import Goal, PlanRequest

TIE: Final = 0.05
"""Predictions within this share count as equal; then fewer nodes and a larger KV cache decide."""
MOST_SLICES: Final = 4
"""Most ranks to split each expert over, all else equal: QwenLM/Qwen3-Coder runs TP4 without expert
parallelism and TP8 with it."""
NOT_SEPARATED: Final = (
    "Prefill and decode run on the same engines. The planner does not separate them, because that "
    "is slower for coding sessions: in llm-d's guide for Qwen3-Coder-480B-FP8 (on TPUs), two "
    "prefill and six decode engines had a median time to first token of 7.3 s, eight unified "
    "engines with prefix routing 2.5 s."
)
"""llm-d guides/models/qwen3-coder-480b/README.md; splits of 5:3 and 6:2 took 158 and 329 s."""


def ranked(candidates: list[Candidate], request: PlanRequest) -> list[Candidate]:
    """Sort best first: by the SLO, then by recommendation, then by speed."""

    def key(one: Candidate) -> tuple[object, ...]:
        return (_class(one), -figure(one, request), -_throughput(one), _size(one))

    order = sorted(candidates, key=key)
    best = order[0]
    if request.goal is Goal.COST:
        return order
    least = figure(best, request) * (1 - TIE)
    near = [one for one in order if _class(one) == _class(best) and figure(one, request) >= least]
    return sorted(near, key=_size) + [one for one in order if one not in near]


def figure(one: Candidate, request: PlanRequest) -> float:
    """Value that the goal compares; more is better. Without predictions it is KV capacity."""
    if request.goal is Goal.COST:
        return 1 / one.num_gpus
    if one.speed is not None and request.goal is Goal.LATENCY:
        return 1 / middle(one.speed.tpot_s)
    return _throughput(one)


def _throughput(one: Candidate) -> float:
    """Output tokens per second of all engines, or KV tokens without a prediction."""
    speed = one.speed
    return one.kv_tokens if speed is None else one.engines * middle(speed.output_tokens_per_s)


def _class(one: Candidate) -> tuple[bool, SloVerdict, int]:
    slow = sum(note.is_discouraged for note in one.judgment.notes)
    return (not one.holds_wanted_context, one.slo, slow)


def _size(one: Candidate) -> tuple[int, int, bool, int]:
    """Tie-breaker: fewer nodes, larger KV cache, whole experts instead of thin slices if there are
    many ranks, fewer data parallel ranks."""
    split = expert_split(one.layout)
    is_thin = (split > MOST_SLICES) != one.layout.expert_parallel
    return (one.layout.nodes, -one.kv_tokens, is_thin, one.layout.data_parallel_size)


def reason(order: list[Candidate], request: PlanRequest) -> str:
    """Explain in one or two sentences why the first candidate is the choice."""
    choice, *others = order
    count = "one engine" if choice.engines == 1 else f"{choice.engines} engines"
    predicted = "" if choice.speed is None else " (predicted)"
    machines = f"{count} on {choice.num_gpus} of {request.machines.name}"
    why = _before(choice, others[0], request) if others else "no other layout fits"
    text = f"{choice.layout.name}, {machines}, {_figure_text(choice, request)}{predicted}; {why}."
    least = figure(choice, request) / (1 - TIE)  # `ranked` treats the ones below as equal
    faster = [one for one in others if figure(one, request) > least]
    fastest = max(faster, key=lambda one: figure(one, request), default=None)
    if fastest is not None and fastest is not others[0]:
        name, why = fastest.layout.name, _before(choice, fastest, request)
        why = f"it{why.removeprefix(name)}" if why.startswith(name) else why
        text += f" By {request.goal.value} alone, {name} looks better, but {why}."
    return text


def _before(choice: Candidate, other: Candidate, request: PlanRequest) -> str:
    """Say the first reason why `choice` ranks before `other`."""
    name = other.layout.name
    if choice.holds_wanted_context != other.holds_wanted_context:
        wanted = request.wanted_context_tokens
        return f"{name} holds only {other.max_model_len:,} of the {wanted:,} tokens of context"
    if choice.slo is not other.slo:
        words = {
            SloVerdict.KEPT: "meet",
            SloVerdict.POSSIBLE: "possibly meet",
            SloVerdict.MISSED: "miss",
        }
        better, worse = words[choice.slo], words[other.slo]
        return f"the choice is predicted to {better} {request.slo.name}, and {name} to {worse} it"
    mine, its = ([n for n in one.judgment.notes if n.is_discouraged] for one in (choice, other))
    if len(mine) < len(its):
        rule = next(note for note in its if note not in mine).rule
        return f"{name} loads but is not recommended (rule {rule.value})"
    if request.goal is Goal.COST and choice.num_gpus != other.num_gpus:
        return f"{name} needs {_gpus(other)} for the load"
    best, next_best = figure(choice, request), figure(other, request)
    if request.goal is Goal.COST or best > next_best * (1 + TIE):
        return f"{name} has {_figure_text(other, request)}"
    tie = f"{name} is within {TIE:.0%} of the choice"
    if choice.layout.nodes < other.layout.nodes:
        return f"{tie} but needs {other.layout.nodes} nodes for one engine"
    if choice.kv_tokens > other.kv_tokens:
        kv = f"{choice.kv_tokens:,} tokens instead of {other.kv_tokens:,}"
        return f"{tie}, which has more KV cache: {kv}"
    kept = "whole" if choice.layout.expert_parallel else "split"
    return f"{tie}, which keeps experts {kept}, as is usual for that many ranks"


def _gpus(one: Candidate) -> str:
    return f"{one.num_gpus} GPU{'s' if one.num_gpus > 1 else ''}"


def _figure_text(one: Candidate, request: PlanRequest) -> str:
    """Format the value that the goal compares."""
    if one.speed is None:
        return f"{one.kv_tokens:,} tokens of KV cache"
    if request.goal is Goal.LATENCY:
        return f"{(one.speed.tpot_s * 1000).text('ms')} per token"
    return f"{(one.speed.output_tokens_per_s * one.engines).text('output tokens/s')}"


def warnings(choice: Candidate, request: PlanRequest) -> list[str]:
    """Warnings about the choice for the operator."""
    found = [f"{note.sentence}." for note in choice.judgment.notes]
    found = [text[0].upper() + text[1:] for text in found]
    if not choice.holds_wanted_context:
        found.append(
            f"One sequence can have only {choice.max_model_len:,} tokens of the model's "
            f"{request.wanted_context_tokens:,}; max_model_len is set to that."
        )
    running, asked = choice.engines * choice.concurrency, request.load.concurrency
    if running < asked:
        found.append(
            f"KV caches and max_num_seqs (at most {SEQUENCES:,} on each data parallel rank) allow "
            f"{running:,} concurrent requests of {request.load.sequence_tokens:,} tokens; the "
            f"other {asked - running:,} of {asked:,} wait."
        )
    if choice.slo is SloVerdict.MISSED:
        found.append(f"No layout is predicted to meet {request.slo.name}; this one comes closest.")
    if choice.layout.pipeline_parallel_size > 1:
        found.append(
            "Pipeline stages wait for each other during decode; no other kind of layout fits."
        )
    accelerator = request.machines.accelerator
    weak = [origin.text for origin in accelerator.origins if origin.is_weak]
    if accelerator.is_weak("flops_per_s"):
        found.append(f"The rates of {accelerator.name} have a weak source ({weak[-1]}).")
    if request.kv_dtype is KVDtype.FP8 and accelerator.flops(ComputeDtype.FP8) is None:
        found.append(
            f"{accelerator.name} has no FP8 matrix units, and some of vLLM's attention backends "
            "cannot read an FP8 KV cache there (Triton's refuses it): test it first."
        )
    found += accelerator.cautions
    found += [f"{request.model.short_name}: {doubt}." for doubt in request.model.doubts]
    return found
