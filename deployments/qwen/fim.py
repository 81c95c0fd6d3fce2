"""Fill-in-the-middle prompts of Qwen's models: what stands before the cursor, what comes after it,
and other files of the repository.

    <|fim_prefix|>BEFORE<|fim_suffix|>AFTER<|fim_middle|>

The README of QwenLM/Qwen3-Coder documents this form, and for Instruct checkpoints a chat around it;
the report on Qwen2.5-Coder (arXiv 2409.12186) has the one with a repository. A prompt is a list of
parts: a special token is a number, and text is a string that `encoded` hands to a tokenizer of
plain text. So no text of a user can become a special token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

PREFIX: Final = "<|fim_prefix|>"
SUFFIX: Final = "<|fim_suffix|>"
MIDDLE: Final = "<|fim_middle|>"
PAD: Final = "<|fim_pad|>"
REPOSITORY: Final = "<|repo_name|>"
FILE: Final = "<|file_sep|>"
START: Final = "<|im_start|>"
END: Final = "<|im_end|>"
END_OF_TEXT: Final = "<|endoftext|>"
STOPS: Final = (PREFIX, SUFFIX, MIDDLE, PAD, REPOSITORY, FILE, START, END, END_OF_TEXT)
"""What a model writes after the middle: its end, or the begin of something else."""
SYSTEM: Final = "You are a code completion assistant."
"""The system message in the README of QwenLM/Qwen3-Coder."""

Part = int | str
"""A special token, or text."""
Encode = Callable[[list[str]], list[list[int]]]
"""Tokenizes plain texts, one by one."""


@dataclass(frozen=True, slots=True)
class File:
    """One more file of the repository."""

    path: str
    text: str


@dataclass(frozen=True, slots=True)
class Repository:
    """What surrounds the file that is edited."""

    name: str
    path: str
    """The path of that file."""
    files: tuple[File, ...] = ()


@dataclass(frozen=True, slots=True)
class FimTokens:
    """The ids of a model's tokens for this; None for one that it lacks."""

    prefix: int
    suffix: int
    middle: int
    repository: int | None
    file: int | None
    start: int | None
    end: int | None
    stops: tuple[int, ...]

    @staticmethod
    def of(vocabulary: Mapping[str, int]) -> FimTokens | None:
        """Return those of a vocabulary of special tokens; None if it cannot mark a middle."""
        found = [vocabulary.get(token) for token in (PREFIX, SUFFIX, MIDDLE)]
        prefix, suffix, middle = found
        if prefix is None or suffix is None or middle is None:
            return None
        return FimTokens(
            prefix=prefix,
            suffix=suffix,
            middle=middle,
            repository=vocabulary.get(REPOSITORY),
            file=vocabulary.get(FILE),
            start=vocabulary.get(START),
            end=vocabulary.get(END),
            stops=tuple(vocabulary[token] for token in STOPS if token in vocabulary),
        )


def raw(tokens: FimTokens, before: str, after: str) -> list[Part]:
    """Return the prompt for the text between these two, as base models know it."""
    return [tokens.prefix, before, tokens.suffix, after, tokens.middle]


def in_repository(
    tokens: FimTokens, repository: Repository, middle: Sequence[Part]
) -> list[Part] | None:
    """Return a raw prompt after the files of its repository; None if the model cannot separate
    files."""
    if tokens.repository is None or tokens.file is None:
        return None
    parts: list[Part] = [tokens.repository, f"{repository.name}\n"]
    for file in repository.files:
        parts += [tokens.file, f"{file.path}\n{file.text}\n"]
    return [*parts, tokens.file, f"{repository.path}\n", *middle]


def as_chat(tokens: FimTokens, question: Sequence[Part]) -> list[Part] | None:
    """Return a prompt as the question of a chat, as Instruct checkpoints know it; None if the model
    has no such chats."""
    start, end = tokens.start, tokens.end
    if start is None or end is None:
        return None
    asked: list[Part] = [start, f"system\n{SYSTEM}", end, "\n", start, "user\n", *question, end]
    return [*asked, "\n", start, "assistant\n"]


def encoded(parts: Iterable[Part], encode: Encode) -> list[int]:
    """Return the token ids of a prompt."""
    parts = list(parts)
    texts = iter(encode([part for part in parts if isinstance(part, str) and part]))
    ids: list[int] = []
    for part in parts:
        if isinstance(part, int):
            ids.append(part)
        elif part:
            ids += next(texts)
    return ids
