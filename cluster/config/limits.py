"""Bounds on one request, which keep it from slowing down or ending what others use.

A gateway checks them before vLLM sees the request. Three maxima are sizes of vLLM's own buffers: an
engine on a GPU dies of a request above them.
"""

from typing import Final

from pydantic import Field

from qwenfleet.cluster.config.section import Section

RUNNER_LOGIT_BIAS: Final = 1024
RUNNER_ALLOWED_TOKEN_IDS: Final = 1024
RUNNER_STOP_TOKEN_IDS: Final = 128
"""MAX_NUM_LOGIT_BIAS_TOKENS, MAX_NUM_ALLOWED_TOKEN_IDS and MAX_NUM_STOP_TOKEN_IDS of vLLM 0.32
v1/worker/gpu/sample/logit_bias.py, which raises in a step when a request has more."""
RUNNER_BAD_WORDS: Final = 128
RUNNER_BAD_WORD_TOKENS: Final = 1024
"""Defaults of VLLM_MAX_NUM_BAD_WORDS and VLLM_MAX_BAD_WORDS_TOTAL_TOKENS in vLLM 0.32 envs.py; its
v1/worker/gpu/sample/bad_words.py raises in a step when a request has more."""
RUNNER_LOGPROB_TOKEN_IDS: Final = 128
"""MAX_LOGPROB_TOKEN_IDS of vLLM 0.32 sampling_params.py."""


class LimitsConfig(Section):
    """Bounds on the fields of one request."""

    body_values: int = Field(
        default=100_000,
        ge=1000,
        description="Strings, objects and arrays in a body; names of fields count.",
    )
    body_depth: int = Field(
        default=96, ge=8, le=400, description="Nesting of objects and arrays in a body."
    )
    token_ids: int = Field(
        default=1_048_576, ge=1, description="Token ids in a body, of all prompts together."
    )
    chars_per_token: int = Field(
        default=8,
        ge=1,
        description="Text of a request, in characters per token of the model's context. Longer "
        "text is refused before it is tokenized.",
    )
    messages: int = Field(default=4096, ge=1, description="Messages or documents of a request.")
    input_items: int = Field(
        default=2048,
        ge=1,
        description="Items of `input` in the Responses API, each of which may be of 60 kinds.",
    )
    context_files: int = Field(
        default=256,
        ge=1,
        description="Other files in a fill-in-the-middle request, `fim.files` or `input_extra`.",
    )
    tools: int = Field(default=512, ge=1, description="Tools of a request.")
    prompts: int = Field(default=128, ge=1, le=1024, description="Prompts of a completion request.")
    n: int = Field(default=32, ge=1, le=16384, description="Answers to one prompt, `n`.")
    sequences: int = Field(
        default=128, ge=1, description="Answers of one request: its prompts times `n`."
    )
    beam_width: int = Field(default=8, ge=1, description="`n` with `use_beam_search`.")
    beam_tokens: int = Field(
        default=1024,
        ge=1,
        description="`max_tokens` with `use_beam_search`, which sends the whole prompt again for "
        "each token and beam.",
    )
    logprobs: int = Field(
        default=20,
        ge=0,
        le=RUNNER_LOGPROB_TOKEN_IDS,
        description="`logprobs`, `top_logprobs`, `prompt_logprobs` and the length of "
        "`logprob_token_ids`; above 20, `max_logprobs` in `engine_args` has to rise too.",
    )
    prompt_logprob_values: int = Field(
        default=65_536,
        ge=1,
        description="Log probabilities of a prompt: its tokens times (`prompt_logprobs` + 1).",
    )
    logprob_values: int = Field(
        default=1_000_000,
        ge=1,
        description="Log probabilities in all answers of one request, each of which takes some "
        "200 bytes of a gateway until the request ends.",
    )
    logit_bias: int = Field(
        default=RUNNER_LOGIT_BIAS,
        ge=1,
        le=RUNNER_LOGIT_BIAS,
        description="Entries of `logit_bias`.",
    )
    allowed_token_ids: int = Field(
        default=RUNNER_ALLOWED_TOKEN_IDS,
        ge=1,
        le=RUNNER_ALLOWED_TOKEN_IDS,
        description="Entries of `allowed_token_ids`.",
    )
    stop_token_ids: int = Field(
        default=64,
        ge=1,
        le=RUNNER_STOP_TOKEN_IDS,
        description="Entries of `stop_token_ids`; with `min_tokens`, the model's own end tokens "
        f"and these are {RUNNER_STOP_TOKEN_IDS} at most.",
    )
    stop_chars: int = Field(
        default=1024, ge=1, description="Characters of all stop strings together."
    )
    bad_words: int = Field(
        default=64,
        ge=1,
        le=RUNNER_BAD_WORDS,
        description=f"Entries of `bad_words`; they may have {RUNNER_BAD_WORD_TOKENS} tokens in "
        "all, with and without a space in front.",
    )
    bad_word_chars: int = Field(
        default=4096, ge=1, description="Characters of all `bad_words` together."
    )
    schema_values: int = Field(
        default=10_000,
        ge=1,
        description="Values in one JSON schema or list of choices; names of fields count.",
    )
    schema_chars: int = Field(
        default=262_144,
        ge=1,
        description="Characters of one JSON schema, grammar or list of choices.",
    )
    regex_chars: int = Field(
        default=4096, ge=1, description="Characters of a regular expression for the output."
    )
    repetition_pattern: int = Field(
        default=128,
        ge=1,
        description="`max_pattern_size` of `repetition_detection`, which an engine checks at each "
        "token.",
    )
    option_values: int = Field(
        default=256,
        ge=1,
        description="Values in `chat_template_kwargs`, `metadata`, `vllm_xargs` and the like.",
    )
    option_chars: int = Field(
        default=16_384, ge=1, description="Characters of all values of such a field."
    )
    id_chars: int = Field(
        default=128,
        ge=16,
        le=1024,
        description="Characters of `request_id`, `session_id`, `user` and other names that a "
        "client chooses, and of the headers X-Request-Id and X-Session-ID.",
    )
    lowest_priority: int = Field(
        default=0,
        ge=-(2**31),
        le=0,
        description="Smallest `priority` that clients may send; engines and gateways take smaller "
        "ones first.",
    )
