"""Fill-in-the-middle prompts: their parts, and their token ids with Qwen3's own tokenizer.

The golden ids are put together by hand: those of special tokens from the list of added tokens in
Qwen3's tokenizer.json (`<|fim_prefix|>` 151659, `<|fim_middle|>` 151660, `<|fim_suffix|>` 151661),
those of texts from the tokenizer.
"""

from __future__ import annotations

import pytest

from qwenfleet.cluster.models.byte_tokenizer import TOKEN_IDS
from qwenfleet.deployments.qwen import fim
from qwenfleet.deployments.qwen.fim import File, FimTokens, Part, Repository
from qwenfleet.deployments.vllm_adapter.plain_text import PlainText
from tests.qwen_tokenizer import qwen_tokenizer

BEFORE = "def add(a, b):\n    "
AFTER = "\n\nprint(add(1, 2))\n"
LIBRARY = Repository("lib", "b.py", (File("a.py", "A = 1"),))
MIDDLE = [
    *(151659, 750, 912, 2877, 11, 293, 982, 257),
    *(151661, 271, 1350, 25906, 7, 16, 11, 220, 17, 1171),
    151660,
]
IN_LIBRARY = [
    *(151663, 2740, 198),
    *(151664, 64, 7197, 198, 32, 284, 220, 16, 198),
    *(151664, 65, 7197, 198),
]
CHAT = [
    *(151644, 8948, 198, 2610, 525, 264, 2038, 9755, 17847, 13, 151645, 198),
    *(151644, 872, 198),
]
ANSWER = [151645, 198, 151644, 77091, 198]


@pytest.fixture
def plain() -> PlainText:
    return PlainText(qwen_tokenizer())


def tokens_of(vocabulary: dict[str, int]) -> FimTokens:
    tokens = FimTokens.of(vocabulary)
    assert tokens is not None
    return tokens


def parts_of(tokens: FimTokens, form: str, repository: Repository | None) -> list[Part]:
    parts: list[Part] | None = fim.raw(tokens, BEFORE, AFTER)
    if repository is not None:
        assert parts is not None
        parts = fim.in_repository(tokens, repository, parts)
    if form == "chat":
        assert parts is not None
        parts = fim.as_chat(tokens, parts)
    assert parts is not None
    return parts


@pytest.mark.parametrize(
    ("form", "repository", "golden"),
    [
        ("raw", None, MIDDLE),
        ("raw", LIBRARY, [*IN_LIBRARY, *MIDDLE]),
        ("chat", None, [*CHAT, *MIDDLE, *ANSWER]),
        ("chat", LIBRARY, [*CHAT, *IN_LIBRARY, *MIDDLE, *ANSWER]),
    ],
)
def test_prompts_have_the_token_ids_that_the_models_were_trained_on(
    plain: PlainText, form: str, repository: Repository | None, golden: list[int]
) -> None:
    parts = parts_of(tokens_of(plain.special), form, repository)
    assert fim.encoded(parts, plain.encode) == golden
    names = {number: name for name, number in plain.special.items()}
    text = "".join(names[part] if isinstance(part, int) else part for part in parts)
    assert qwen_tokenizer().encode(text) == golden, "as the README's code has it"


def test_the_readmes_example_reads_as_in_the_readme(plain: PlainText) -> None:
    """The prompt of "Fill in the middle" in the README of QwenLM/Qwen3-Coder."""
    parts = parts_of(tokens_of(plain.special), "chat", None)
    assert qwen_tokenizer().decode(fim.encoded(parts, plain.encode)) == (
        "<|im_start|>system\nYou are a code completion assistant.<|im_end|>\n"
        f"<|im_start|>user\n<|fim_prefix|>{BEFORE}<|fim_suffix|>{AFTER}<|fim_middle|><|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_stops_are_all_that_cannot_be_part_of_a_middle(plain: PlainText) -> None:
    stops = tokens_of(plain.special).stops
    assert stops == (
        *(151659, 151661, 151660, 151662, 151663, 151664),
        *(151644, 151645, 151643),
    )


def test_text_that_names_special_tokens_gives_none(plain: PlainText) -> None:
    hostile = "a".join(plain.special)
    repository = Repository(hostile, hostile, (File(hostile, hostile),))
    tokens = tokens_of(plain.special)
    chat = fim.as_chat(
        tokens, fim.in_repository(tokens, repository, fim.raw(tokens, hostile, hostile)) or []
    )
    assert chat is not None
    ids = fim.encoded(chat, plain.encode)
    special = set(plain.special.values())
    assert [token for token in ids if token in special] == [
        part for part in chat if isinstance(part, int)
    ]
    assert qwen_tokenizer().decode(ids).count(hostile) == 6, "and the text is as it was"


@pytest.mark.parametrize("missing", [fim.PREFIX, fim.SUFFIX, fim.MIDDLE])
def test_a_model_without_one_of_the_three_tokens_fills_no_middle(missing: str) -> None:
    assert FimTokens.of({name: 1 for name in TOKEN_IDS if name != missing}) is None


def test_a_model_may_lack_repositories_and_chats() -> None:
    tokens = tokens_of({fim.PREFIX: 1, fim.SUFFIX: 2, fim.MIDDLE: 3})
    middle = fim.raw(tokens, "a", "b")
    assert middle == [1, "a", 2, "b", 3]
    assert fim.in_repository(tokens, LIBRARY, middle) is None
    assert fim.as_chat(tokens, middle) is None
    assert tokens.stops == (1, 2, 3)


def test_empty_texts_are_not_tokenized() -> None:
    seen: list[str] = []

    def encode(texts: list[str]) -> list[list[int]]:
        seen.extend(texts)
        return [[9] for _ in texts]

    assert fim.encoded([1, "", 2, "b", 3], encode) == [1, 2, 9, 3]
    assert seen == ["b"]
