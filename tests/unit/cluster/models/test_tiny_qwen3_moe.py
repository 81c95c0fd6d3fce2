import json
from pathlib import Path

import pytest
import safetensors
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from qwenfleet.cluster.models import byte_tokenizer, tiny_qwen3_moe
from qwenfleet.cluster.models.byte_tokenizer import ADDED_TOKENS, CHAT_TEMPLATE, TOKEN_IDS


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny")
    tiny_qwen3_moe.build(path)
    return path


@pytest.fixture(scope="module")
def tokenizer(directory: Path) -> Tokenizer:
    return Tokenizer.from_file(str(directory / "tokenizer.json"))


def render(messages: list[dict[str, object]], **arguments: object) -> str:
    """Render the chat template as transformers does."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "sort_keys": False}
    return environment.from_string(CHAT_TEMPLATE).render(messages=messages, **arguments)


def test_two_builds_write_the_same_bytes(directory: Path, tmp_path: Path) -> None:
    tiny_qwen3_moe.build(tmp_path)
    names = sorted(path.name for path in directory.iterdir())
    assert names == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    for name in names:
        assert (tmp_path / name).read_bytes() == (directory / name).read_bytes()


def test_the_weights_have_the_names_and_shapes_of_qwen3_moe(directory: Path) -> None:
    content = (directory / "model.safetensors").read_bytes()
    tensors = dict(safetensors.deserialize(content))
    shapes = {name: tuple(tensor["shape"]) for name, tensor in tensors.items()}
    assert {tensor["dtype"] for tensor in tensors.values()} == {"BF16"}
    assert len(shapes) == 3 + 2 * (9 + 3 * 8)
    assert shapes["model.embed_tokens.weight"] == shapes["lm_head.weight"] == (271, 128)
    layer = "model.layers.1"
    assert shapes[f"{layer}.self_attn.q_proj.weight"] == (256, 128)
    assert shapes[f"{layer}.self_attn.k_proj.weight"] == (128, 128)
    assert shapes[f"{layer}.self_attn.q_norm.weight"] == (64,)
    assert shapes[f"{layer}.mlp.gate.weight"] == (8, 128)
    assert shapes[f"{layer}.mlp.experts.7.down_proj.weight"] == (128, 128)


def test_the_config_matches_the_weights(directory: Path) -> None:
    config = json.loads((directory / "config.json").read_text())
    assert config["architectures"] == ["Qwen3MoeForCausalLM"]
    assert config["vocab_size"] == 271
    assert config["max_position_embeddings"] == 32768
    assert config["num_key_value_heads"] % 2 == 0
    assert config["eos_token_id"] == TOKEN_IDS["<|im_end|>"]


@pytest.mark.parametrize("text", ["plain", "zwölf Äpfel\n\t日本 🦙", " two  spaces 123 "])
def test_every_byte_is_one_token_and_survives_decoding(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text).ids
    assert ids == list(text.encode())
    assert tokenizer.decode(ids) == text


def test_every_byte_has_its_own_character() -> None:
    assert len(set(byte_tokenizer.byte_characters())) == 256


def test_added_tokens_follow_the_bytes_in_qwens_order(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("".join(ADDED_TOKENS)).ids
    assert ids == list(range(256, 271))


def test_skipping_special_tokens_keeps_tool_fim_and_think_tokens(
    tokenizer: Tokenizer,
) -> None:
    text = "<|im_start|>a<tool_call><|fim_prefix|></think><|im_end|><|endoftext|>"
    ids = tokenizer.encode(text).ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == "a<tool_call><|fim_prefix|></think>"


def test_a_plain_chat_is_chatml() -> None:
    messages: list[dict[str, object]] = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Yo"},
    ]
    assert render(messages, add_generation_prompt=True) == (
        "<|im_start|>system\nBe short.\n<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\nYo<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_tools_are_listed_as_xml() -> None:
    properties = {"path": {"type": "string", "enum": ["a", "b"]}}
    function = {
        "name": "read",
        "description": "Reads.",
        "parameters": {"type": "object", "properties": properties},
    }
    text = render([{"role": "user", "content": "Hi"}], tools=[{"function": function}])
    assert (
        "<tools>\n<function>\n<name>read</name>\n<description>Reads.</description>\n<parameters>\n"
        '<parameter>\n<name>path</name>\n<type>string</type>\n<enum>["a", "b"]</enum>\n'
        "</parameter>\n</parameters>\n</function>\n</tools>\n"
    ) in text


def test_a_tool_without_parameters_is_listed_too() -> None:
    text = render([{"role": "user", "content": "Hi"}], tools=[{"function": {"name": "now"}}])
    assert "<name>now</name>\n<description></description>\n<parameters>\n</parameters>" in text


def test_calls_and_results_have_qwen3_coders_format() -> None:
    call = {"function": {"name": "read", "arguments": {"path": "a\nb", "lines": [1, 2]}}}
    messages: list[dict[str, object]] = [
        {"role": "user", "content": "Go"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "first"},
        {"role": "tool", "content": "second"},
    ]
    assert render(messages) == (
        "<|im_start|>user\nGo<|im_end|>\n"
        "<|im_start|>assistant\n\n<tool_call>\n<function=read>\n"
        "<parameter=path>\na\nb\n</parameter>\n<parameter=lines>\n[1, 2]\n</parameter>\n"
        "</function>\n</tool_call><|im_end|>\n"
        "<|im_start|>user\n<tool_response>\nfirst\n</tool_response>\n"
        "<tool_response>\nsecond\n</tool_response>\n<|im_end|>\n"
    )
