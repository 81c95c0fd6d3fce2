"""A tokenizer without a vocabulary to download: one token per byte, then Qwen3's added tokens."""

from pathlib import Path
from typing import Any

from qwenfleet.cluster.models.checkpoint import write_json

ADDED_TOKENS = {
    "<|endoftext|>": True,
    "<|im_start|>": True,
    "<|im_end|>": True,
    "<tool_call>": False,
    "</tool_call>": False,
    "<|fim_prefix|>": False,
    "<|fim_middle|>": False,
    "<|fim_suffix|>": False,
    "<|fim_pad|>": False,
    "<|repo_name|>": False,
    "<|file_sep|>": False,
    "<tool_response>": False,
    "</tool_response>": False,
    "<think>": False,
    "</think>": False,
}
"""Qwen3's added tokens in their order, after the 256 bytes; true if `special`. As in Qwen3's
tokenizer.json, skip_special_tokens keeps tool, FIM and think tokens."""

NUM_BYTES = 256
TOKEN_IDS = {token: NUM_BYTES + i for i, token in enumerate(ADDED_TOKENS)}

CHAT_TEMPLATE = """\
{% if tools or messages[0].role == 'system' %}
<|im_start|>system
{% if messages[0].role == 'system' %}
{{ messages[0].content }}
{% endif %}
{% if tools %}
You may call these functions:
<tools>
{% for tool in tools %}
<function>
<name>{{ tool.function.name }}</name>
<description>{{ tool.function.description }}</description>
<parameters>
{% for name, schema in ((tool.function.parameters or {}).properties or {}).items() %}
<parameter>
<name>{{ name }}</name>
{% for key, value in schema.items() %}
<{{ key }}>{{ value if value is string else value | tojson }}</{{ key }}>
{% endfor %}
</parameter>
{% endfor %}
</parameters>
</function>
{% endfor %}
</tools>
A call is the end of your answer and looks like this:
<tool_call>
<function=NAME>
<parameter=KEY>
VALUE
</parameter>
</function>
</tool_call>
{% endif %}
<|im_end|>
{% endif %}
{% for message in messages %}
{% if message.role == 'tool' %}
{% if loop.previtem is not defined or loop.previtem.role != 'tool' %}
<|im_start|>user
{% endif %}
<tool_response>
{{ message.content }}
</tool_response>
{% if loop.nextitem is not defined or loop.nextitem.role != 'tool' %}
<|im_end|>
{% endif %}
{% elif message.role != 'system' or not loop.first %}
<|im_start|>{{ message.role }}
{{ message.content or '' }}{% for call in message.tool_calls or [] %}

<tool_call>
<function={{ call.function.name }}>
{% for name, value in call.function.arguments.items() %}
<parameter={{ name }}>
{{ value if value is string else value | tojson }}
</parameter>
{% endfor %}
</function>
</tool_call>{% endfor %}
<|im_end|>
{% endif %}
{% endfor %}
{% if add_generation_prompt %}
<|im_start|>assistant
{% endif %}
"""
"""ChatML with Qwen3-Coder's form of calls. Arguments are already parsed (vLLM parses the client's
JSON). transformers renders with trim_blocks and lstrip_blocks, so a tag swallows its newline."""


def write_byte_tokenizer(directory: Path, model_max_length: int) -> None:
    """Write tokenizer.json and tokenizer_config.json to a model directory."""
    write_json(directory / "tokenizer_config.json", _tokenizer_config(model_max_length))
    (directory / "tokenizer.json").write_text(_tokenizer_json(), encoding="utf-8")


def byte_characters() -> list[str]:
    """Return the character for each byte in a byte-level vocabulary (GPT-2, encoder.py)."""
    shown = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = [byte for byte in range(NUM_BYTES) if byte not in shown]
    return [
        chr(byte if byte in shown else NUM_BYTES + hidden.index(byte)) for byte in range(NUM_BYTES)
    ]


def _tokenizer_config(model_max_length: int) -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "clean_up_tokenization_spaces": False,
        "model_max_length": model_max_length,
        "chat_template": CHAT_TEMPLATE,
    }


def _tokenizer_json() -> str:
    """Return a tokenizer with one token per byte, whose id is the byte, then the added tokens."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    vocabulary = {character: byte for byte, character in enumerate(byte_characters())}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens(
        [
            AddedToken(token, special=is_special, normalized=False)
            for token, is_special in ADDED_TOKENS.items()
        ]
    )
    return tokenizer.to_str()
