"""llama.cpp's `POST /infill`, which llama.vim and llama.vscode send, as a completion. Pure.

Its prompt is that of a completion with `suffix` and `fim`. Fields that change the answer and that
vLLM cannot honor are refused; llama.cpp's own memory and slots have no meaning here. Read in
llama.cpp: tools/server/server-common.cpp (format_prompt_infill), server-context.cpp (process_token)
and server-task.cpp; in the editors: autoload/llama.vim, src/llama-server.ts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from qwenfleet.cluster.config.limits import LimitsConfig
from qwenfleet.deployments.ingress.field_errors import NotTaken, WrongValue
from qwenfleet.deployments.ingress.fim_fields import string
from qwenfleet.deployments.ingress.rules import describe, items, texts, whole

REPOSITORY: Final = "myproject"
PATH: Final = "filename"
FILE: Final = "tmp"
"""Names that llama.cpp gives to a repository, the file that is edited, and one without a name."""
UNKNOWN_CONTEXT: Final = 512
"""Tokens of an answer without a bound, as long as no engine has reported its context."""
RANDOM_SEEDS: Final = (-1, 2**32 - 1)
INFILL_MIN_P: Final = 0.2
"""llama.cpp's sampler `infill` drops tokens below this probability. Relative to the most likely
token's, as vLLM's `min_p` is, this drops none that `infill` keeps."""
SAMPLING: Final[Mapping[str, tuple[str, str, float]]] = {
    "temperature": ("temperature", "temperature", 1.0),
    "top_k": ("top_k", "top_k", 0),
    "top_p": ("top_p", "top_p", 1.0),
    "min_p": ("min_p", "min_p", 0.0),
    "repeat_penalty": ("repetition_penalty", "penalties", 1.0),
    "presence_penalty": ("presence_penalty", "penalties", 0.0),
    "frequency_penalty": ("frequency_penalty", "penalties", 0.0),
}
"""Fields of llama.cpp: the completion's, the name in `samplers`, and the value that turns it
off."""
CARRIED: Final = ("model", "priority", "user", "cache_salt", "request_id", "ignore_eos")
"""Fields that mean the same in a completion."""
UNABLE: Final[Mapping[str, tuple[Any, ...]]] = {
    "grammar": ("",),
    "json_schema": ({},),
    "n_probs": (0,),
    "logit_bias": ([], {}, False),
    "lora": ([],),
    "image_data": ([],),
    "mirostat": (0,),
    "dry_multiplier": (0,),
    "xtc_probability": (0,),
    "typical_p": (1,),
    "top_n_sigma": (-1, 0),
    "dynatemp_range": (0,),
    "return_tokens": (False,),
}
"""Fields that change an answer and cannot be honored, with the values that change nothing."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """The answer that an editor wants."""

    model: str
    is_stream: bool
    answers: int
    max_tokens: int
    """0: only the prompt is wanted, in the cache of an engine; -1: no bound."""
    least_indent: int
    """A line with fewer blanks at its start ends the answer."""
    most_s: float
    """After so many seconds, the next line ends the answer; 0: no bound."""
    paths: tuple[str, ...]
    """The fields of the answer, as paths; empty: all."""


def completion_of(
    fields: Mapping[str, Any], limits: LimitsConfig, context_tokens: int | None
) -> dict[str, Any]:
    """Return the completion that the fields ask for. Raises a FieldError."""
    most = UNKNOWN_CONTEXT if context_tokens is None else context_tokens  # vLLM cuts it to fit
    _refuse_what_is_unable(fields)
    before = string("input_prefix", fields.get("input_prefix"))
    prompt = fields.get("prompt")
    asked: dict[str, Any] = {name: fields[name] for name in CARRIED if fields.get(name) is not None}
    asked |= {
        "prompt": before + ("" if prompt is None else string("prompt", prompt)),
        "suffix": string("input_suffix", fields.get("input_suffix")),
        "fim": {"repository": REPOSITORY, "path": PATH, "files": _files(fields, limits)},
        # A prompt without an answer fills the cache; vLLM makes one token at least.
        "max_tokens": max(1, _max_tokens(fields, most)),
        "n": _answers(fields),
        "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        **_sampling(fields, limits),
    }
    stop = fields.get("stop")
    if stop:
        texts("stop_chars")("stop", stop, limits)
        asked["stop"] = stop
    seed = fields.get("seed")
    if seed is not None and whole("seed", seed) not in RANDOM_SEEDS:
        asked["seed"] = seed
    return asked


def wanted(fields: Mapping[str, Any], model: str, limits: LimitsConfig) -> Wanted:
    """Return what the answer has to be like. Raises a FieldError."""
    paths = fields.get("response_fields") or []
    items("option_values")("response_fields", paths, limits)
    return Wanted(
        model=model,
        is_stream=bool(fields.get("stream")),
        answers=_answers(fields),
        max_tokens=_max_tokens(fields, -1),
        least_indent=whole("n_indent", fields.get("n_indent") or 0),
        most_s=max(0, whole("t_max_predict_ms", fields.get("t_max_predict_ms") or 0)) / 1000,
        paths=tuple(string("response_fields", path) for path in paths),
    )


def _refuse_what_is_unable(fields: Mapping[str, Any]) -> None:
    for name, harmless in UNABLE.items():
        value = fields.get(name)
        if value is not None and value not in harmless:
            raise NotTaken(name, "the engines of this fleet cannot do it in /infill")


def _files(fields: Mapping[str, Any], limits: LimitsConfig) -> list[dict[str, str]]:
    found = fields.get("input_extra") or []
    items("context_files")("input_extra", found, limits)
    files = []
    for index, file in enumerate(found):
        path = f"input_extra[{index}]"
        if not isinstance(file, dict):
            raise WrongValue(path, describe(file), "an object with filename and text")
        name = file.get("filename")
        name = FILE if name is None else string(f"{path}.filename", name)
        files.append({"path": name, "text": string(f"{path}.text", file.get("text"))})
    return files


def _max_tokens(fields: Mapping[str, Any], unbounded: int) -> int:
    value = fields.get("n_predict")
    value = fields.get("max_tokens") if value is None else value
    tokens = -1 if value is None else whole("n_predict", value)
    return tokens if tokens >= 0 else unbounded


def _answers(fields: Mapping[str, Any]) -> int:
    value = fields.get("n_cmpl")
    value = fields.get("n") if value is None else value
    return max(1, whole("n_cmpl", 1 if value is None else value))


def _sampling(fields: Mapping[str, Any], limits: LimitsConfig) -> dict[str, Any]:
    """Return the completion's sampling. What a request leaves out has the model's own default, and
    a sampler that is not in its list is off."""
    names = fields.get("samplers")
    if names is not None:
        items("option_values")("samplers", names, limits)
    chosen: dict[str, Any] = {}
    for field, (name, sampler, off) in SAMPLING.items():
        if names is not None and sampler not in names:
            chosen[name] = off
        elif fields.get(field) is not None:
            chosen[name] = fields[field]
    if names is None or "infill" not in names:
        return chosen
    if _answers(fields) == 1 and "temperature" not in names:
        return chosen | {"temperature": 0}  # the token that `infill` keeps most often
    return chosen | {"min_p": INFILL_MIN_P}
