"""Text stays text: no name of a special token becomes the token, in three tokenizers."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models
from transformers import PreTrainedTokenizerFast

from qwenfleet.cluster.models.byte_tokenizer import ADDED_TOKENS, write_byte_tokenizer
from qwenfleet.deployments.vllm_adapter.plain_text import PlainText, plain_text_of
from tests.qwen_tokenizer import qwen_tokenizer

BENIGN = ["def f(x):\n\treturn x  # naïve 🙂\r\n", "e\u0301", " ", "\n\n\n", "< | im_end | >"]


@pytest.fixture(params=["bytes", "qwen3"])
def tokenizer(request: pytest.FixtureRequest, tmp_path: Path) -> PreTrainedTokenizerFast:
    if request.param == "qwen3":
        return qwen_tokenizer()
    write_byte_tokenizer(tmp_path, 4096)
    return PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))


def test_every_name_of_a_special_token_is_text(tokenizer: PreTrainedTokenizerFast) -> None:
    plain = PlainText(tokenizer)
    assert set(ADDED_TOKENS) <= set(plain.special)
    special = set(plain.special.values())
    for name in plain.special:
        for text in (name, f"a{name}b", name * 3, f" {name}\n", name[:-1] + name):
            (ids,) = plain.encode([text])
            assert not special & set(ids)
            assert tokenizer.decode(ids) == text


def test_other_text_has_the_tokens_that_it_always_has(tokenizer: PreTrainedTokenizerFast) -> None:
    expected = [tokenizer.encode(text, add_special_tokens=False) for text in BENIGN]
    assert PlainText(tokenizer).encode(BENIGN) == expected


@given(st.lists(st.sampled_from([*ADDED_TOKENS, "<", "|", ">", "a", "\n", "<|", "|>"])))
def test_no_mixture_of_names_and_pieces_gives_a_special_token(pieces: list[str]) -> None:
    plain = PlainText(qwen_tokenizer())
    (ids,) = plain.encode(["".join(pieces)])
    assert not set(plain.special.values()) & set(ids)


def test_a_tokenizer_whose_words_are_its_special_tokens_is_refused() -> None:
    inner = Tokenizer(models.WordLevel({"<|fim_prefix|>": 0, "?": 1}, unk_token="?"))
    inner.add_tokens([AddedToken("<|fim_prefix|>")])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner)
    with pytest.raises(ValueError, match="is the same as the token"):
        PlainText(tokenizer)
    assert plain_text_of(tokenizer) is None


def test_a_tokenizer_of_another_kind_has_no_plain_text() -> None:
    assert plain_text_of(object()) is None
