"""Completions with a suffix: a model fills in the middle between `prompt` and `suffix`.

vLLM (0.32) refuses `suffix` for all but one family of models, and would take a prompt of text, in
which a user's text could name special tokens. Here such a request becomes a prompt of token ids,
with the stops that the model's answer needs. `fim` adds files of the repository.

vLLM internals used here (0.32): OpenAIServingCompletion.online_renderer, OnlineRenderer
(render_completion, preprocess_completion, create_error_response, renderer), CompletionRequest,
BaseRenderer.render_completion_suffix.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from typing import Any, Final, Literal

from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.renderers.base import BaseRenderer
from vllm.renderers.online_renderer import OnlineRenderer

from qwenfleet.cluster.config.limits import LimitsConfig
from qwenfleet.cluster.config.model import ModelConfig
from qwenfleet.deployments.ingress.exchange import current_exchange
from qwenfleet.deployments.ingress.fim_fields import AT_START
from qwenfleet.deployments.qwen import fim
from qwenfleet.deployments.qwen.fim import FimTokens, Part, Repository
from qwenfleet.deployments.vllm_adapter.plain_text import PlainText, plain_text_of
from qwenfleet.deployments.vllm_adapter.renderer_pools import RendererPools

logger = logging.getLogger(__name__)

NOT_WITH_SUFFIX: Final = {
    "echo": "the prompt that the model sees is not the text that you sent",
    "use_beam_search": "beams do not stop at the end of the middle",
    "truncate_prompt_tokens": "a prompt that is cut has no place for the middle",
    "prompt_embeds": "the models take text",
}
"""Fields that cannot be meant together with a suffix, and why."""


class Refusal(Exception):
    """The request cannot be answered; the text is for the client."""

    def __init__(self, field: str, sentence: str) -> None:
        super().__init__(field, sentence)
        self.field = field
        self.sentence = sentence


class MiddlePrompts:
    """Makes the prompts of one model's requests with a suffix."""

    def __init__(
        self,
        model: str,
        form: Literal["raw", "chat"],
        plain: PlainText | None,
        pools: RendererPools,
        first_priority: int,
    ) -> None:
        """`plain` is None for a model whose text cannot be kept from its special tokens. Requests
        of the quick class get `first_priority`, which comes before that of every client."""
        self._model = model
        self._form = form
        self._plain = plain
        self._pools = pools
        self._first_priority = first_priority
        self._tokens = None if plain is None else FimTokens.of(plain.special)

    async def prompt(self, request: CompletionRequest) -> list[int] | None:
        """Return the token ids of a request with a suffix, to which stops are added; None for a
        request without one. Raises Refusal."""
        surrounding = (request.model_extra or {}).get("fim")
        if not request.suffix and not surrounding:
            request.suffix = None  # an empty one is as if it were absent
            return None
        if self._tokens is None or self._plain is None:
            field = "suffix" if request.suffix else "fim"
            raise Refusal(
                field,
                f"model '{self._model}' has no tokens for fill-in-the-middle, so it cannot use "
                f"'{field}'. Leave it out to continue the prompt, or ask in a chat for the text "
                "between two parts.",
            )
        before = _text_of(request, surrounding or {})
        extra = _repository_of(surrounding or {})
        parts = self._parts(self._tokens, before, request.suffix or "", extra)
        texts = [part for part in parts if isinstance(part, str) and part]
        found = await self._pools.fill(self._plain.encode, texts)
        if not request.ignore_eos:
            own = request.stop_token_ids or ()
            request.stop_token_ids = list(dict.fromkeys((*own, *self._tokens.stops)))
        exchange = current_exchange()
        is_quick = exchange is not None and exchange.is_quick
        if is_quick and "priority" not in request.model_fields_set:
            request.priority = self._first_priority
        return fim.encoded(parts, lambda _: found)

    def _parts(
        self, tokens: FimTokens, before: str, after: str, extra: Repository | None
    ) -> list[Part]:
        parts = fim.raw(tokens, before, after)
        if extra is not None:
            whole = fim.in_repository(tokens, extra, parts)
            if whole is None and extra.files:
                raise Refusal(
                    "fim",
                    f"model '{self._model}' has no tokens that separate files. Leave 'fim.files' "
                    "out, or put their text into 'prompt'.",
                )
            parts = whole or parts
        if self._form == "raw":
            return parts
        chat = fim.as_chat(tokens, parts)
        if chat is None:
            raise Refusal(
                "suffix",
                f"model '{self._model}' has no chats of the form that fill_in_the_middle: chat "
                "means. Ask the operator to set models[].fill_in_the_middle to raw.",
            )
        return chat


def install(
    serving: Any, model: ModelConfig, tokenizer: Any, pools: RendererPools, limits: LimitsConfig
) -> None:
    """Make a model's completions take `suffix` and `fim`, unless vLLM knows its form."""
    shared = serving.online_renderer
    known = type(shared.renderer).render_completion_suffix
    if known is not BaseRenderer.render_completion_suffix:
        return
    special: dict[str, int] = getattr(tokenizer, "get_added_vocab", dict)()
    plain = None if FimTokens.of(special) is None else plain_text_of(tokenizer)
    form = model.fill_in_the_middle or "raw"
    prompts = MiddlePrompts(model.id, form, plain, pools, limits.lowest_priority - 1)
    if prompts._tokens is None:
        logger.info("model has no fill-in-the-middle", extra={"model": model.id})
    serving.online_renderer = _renderer(shared, prompts)


def _renderer(shared: OnlineRenderer, prompts: MiddlePrompts) -> OnlineRenderer:
    """Return a renderer of completions; chats and /tokenize keep the shared one."""
    own = copy.copy(shared)
    render = shared.render_completion

    async def render_completion(request: CompletionRequest, **keywords: Any) -> Any:
        try:
            token_ids = await prompts.prompt(request)
        except Refusal as refusal:
            return own.create_error_response(refusal.sentence, param=refusal.field)
        if token_ids is None:
            return await render(request, **keywords)
        return await own.preprocess_completion(
            request, prompt_input=token_ids, prompt_embeds=None, **keywords
        )

    own.render_completion = render_completion  # type: ignore[method-assign]
    return own


def _text_of(request: CompletionRequest, surrounding: Mapping[str, Any]) -> str:
    """Return the text before the middle. Raises Refusal for a request that cannot be meant."""
    for field, reason in NOT_WITH_SUFFIX.items():
        if getattr(request, field) not in (None, False):
            raise Refusal(
                field, f"'{field}' does not work with 'suffix': {reason}. Leave one of them out."
            )
    if not isinstance(request.prompt, str | None):
        raise Refusal(
            "prompt",
            "'suffix' needs one prompt of text. Send 'prompt' as a string, and one request for "
            "each text; token ids go without 'suffix'.",
        )
    return "" if surrounding.get(AT_START) else request.prompt or ""


def _repository_of(surrounding: Mapping[str, Any]) -> Repository | None:
    """Return the repository in the field `fim`, whose form the gateway has checked."""
    if "repository" not in surrounding:
        return None
    files = tuple(fim.File(file["path"], file["text"]) for file in surrounding.get("files") or ())
    return Repository(surrounding["repository"], surrounding["path"], files)
