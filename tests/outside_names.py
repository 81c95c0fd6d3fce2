"""Requests that name something outside of themselves: an address, a file, a template, code.

A gateway fetches, opens and runs none of them. URL is an address where a test listens, FILE a file
with a secret; SECRET stands in that file.
"""

from __future__ import annotations

import base64
import pickle
from typing import Any, Final

SECRET: Final = "a-secret-that-no-answer-may-show"
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"


class Thief:
    """A pickle that reads the file when it is loaded."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (self._path,)


def _content(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [*parts, {"type": "text", "text": "x"}]}]}


def _chat(**fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "x"}]} | fields


def _media(place: str) -> dict[str, tuple[str, dict[str, Any]]]:
    """Images, sounds and documents at a place."""
    source = {"type": "url", "url": place}
    named = {"role": "user", "content": [{"type": "input_image", "image_url": place}]}
    filed = {"role": "user", "content": [{"type": "input_file", "file_url": place}]}
    image = {"role": "user", "content": [{"type": "image", "source": source}]}
    paper = {"role": "user", "content": [{"type": "document", "source": source}]}
    return {
        "image_url": (CHAT, _content({"type": "image_url", "image_url": {"url": place}})),
        "image_url in short": (CHAT, _content({"type": "image_url", "image_url": place})),
        "audio_url": (CHAT, _content({"type": "audio_url", "audio_url": {"url": place}})),
        "video_url": (CHAT, _content({"type": "video_url", "video_url": {"url": place}})),
        "input_image": (CHAT, _content({"type": "input_image", "image_url": place})),
        "file": (CHAT, _content({"type": "file", "file": {"file_id": place}})),
        "an image to tokenize": (
            "/tokenize",
            _content({"type": "image_url", "image_url": {"url": place}}),
        ),
        "input_image of responses": ("/v1/responses", {"input": [named]}),
        "input_file of responses": ("/v1/responses", {"input": [filed]}),
        "an image of messages": ("/v1/messages", {"messages": [image]}),
        "a document of messages": ("/v1/messages", {"messages": [paper]}),
        "an image to count": ("/v1/messages/count_tokens", {"messages": [image]}),
    }


def fetches(url: str, file: str) -> dict[str, tuple[str, dict[str, Any]]]:
    """Return route and body of each request, by name."""
    found = {f"{name}, {url}": made for name, made in _media(f"{url}/x.png").items()}
    for place in (f"file://{file}", file, f"FILE://localhost{file}"):
        found |= {f"{name}, {place}": made for name, made in _media(place).items()}
    schema = {"$ref": f"{url}/schema.json"}
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    transfer = {"do_remote_prefill": True, "remote_host": "127.0.0.1", "remote_url": url}
    pickled = base64.b64encode(pickle.dumps(Thief(file))).decode()
    tool = {"type": "mcp", "server_label": "x", "server_url": url, "require_approval": "never"}
    return found | {
        "a schema's $ref": (CHAT, _chat(response_format=wanted)),
        "a schema's $ref for a tool": (
            CHAT,
            _chat(
                tools=[{"type": "function", "function": {"name": "f", "parameters": schema}}],
                tool_choice="required",
            ),
        ),
        "a schema's $ref as guide": (TEXT, {"prompt": "x", "structured_outputs": {"json": schema}}),
        "a chat template's address": (CHAT, _chat(chat_template=f"{url}/template.jinja")),
        "a chat template's file": (CHAT, _chat(chat_template=file)),
        "an included file": (CHAT, _chat(chat_template=f"{{% include '{file}' %}}")),
        "documents": (CHAT, _chat(documents=[{"title": url, "text": f"file://{file}"}])),
        "media options": (
            CHAT,
            _chat(media_io_kwargs={"image": {"url": url}}, mm_processor_kwargs={"path": file}),
        ),
        "key-value transfer": (TEXT, {"prompt": "x", "kv_transfer_params": transfer}),
        "embeddings that are a pickle": (TEXT, {"prompt_embeds": pickled}),
        "a tool at an address": ("/v1/responses", {"input": "x", "tools": [tool]}),
        "a search tool": (
            "/v1/responses",
            {"input": "x", "tools": [{"type": "web_search_preview"}]},
        ),
        "an interpreter": (
            "/v1/responses",
            {
                "input": "x",
                "tools": [{"type": "code_interpreter", "container": {"type": "auto"}}],
            },
        ),
        "a stored prompt": ("/v1/responses", {"input": "x", "prompt": {"id": url}}),
        "an earlier response": ("/v1/responses", {"input": "x", "previous_response_id": file}),
        "extra arguments": (TEXT, {"prompt": "x", "vllm_xargs": {"path": file, "url": url}}),
    }


TEMPLATES: Final = (
    "{{ 7 * 191 }}",
    "{% for i in range(1000000000) %}{% endfor %}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "{{ raise_exception('1337') }}",
    "{{ 'x' * 1000000000 }}",
    "{% set x = namespace(a=messages) %}{{ x.a }}",
)
"""Templates in requests; some would take a core or the memory of a machine."""
