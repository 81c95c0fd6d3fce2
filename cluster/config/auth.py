"""API keys: their hashes, in the configuration or in a separate file.

A key is random, so storing one plain SHA-256 is safe: an attacker has no list of likely keys to
try. No error text ever shows a key, nor a value that could be one.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Final, Literal, Self

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from qwenfleet.cluster.config.section import Section, refuse
from qwenfleet.cluster.errors import ConfigError

KEY_PREFIX: Final = "qf-"
KEY_BYTES: Final = 32
"""Random bytes in a key: 43 characters of base64."""
MAX_KEY_BYTES: Final = 512
"""Longest key; longer values are rejected without hashing them."""
MAX_FILE_BYTES: Final = 8 * 2**20
"""Largest keys file: room for a hundred thousand keys, each with a name."""
MAX_NAME_CHARACTERS: Final = 64
"""Longest name of a key in logs; the rest of a comment is left out."""
SHOWN_DIGITS: Final = 8
"""Digits of a hash that stand for a key without a name."""
NO_NAMES: Final[Mapping[str, str]] = MappingProxyType({})
HASH_PATTERN: Final = r"^sha256:[0-9a-fA-F]{64}$"
NOT_A_HASH: Final = "not a key hash; the value is hidden because it might be a key"
WANTED: Final = "Write `sha256:` and 64 hexadecimal digits, as printed by `qwenfleet keys hash`."

_is_hash = re.compile(HASH_PATTERN).fullmatch


def _only_a_hash(value: object) -> object:
    """Reject a wrong value without showing it, as pydantic's own message would."""
    if isinstance(value, str) and _is_hash(value):
        return value
    raise refuse(NOT_A_HASH, WANTED)


KeyHash = Annotated[str, Field(pattern=HASH_PATTERN), BeforeValidator(_only_a_hash)]
"""`sha256:` and the 64 hexadecimal digits of a whole key's SHA-256."""


class AuthConfig(Section):
    """The keys that a fleet accepts: those of both fields together."""

    keys: tuple[KeyHash, ...] = Field(
        default=(),
        strict=False,
        description="Key hashes, each `sha256:` and 64 hexadecimal digits, as printed by "
        "`qwenfleet keys new`. A change restarts the gateways.",
    )
    keys_file: str | None = Field(
        default=None,
        pattern=r"^/",
        description="Absolute path of a file with one key hash per line and comments after `#`. "
        "It must exist at this path on every node that runs a gateway. Gateways reload it when it "
        "changes. null: no file.",
    )

    @model_validator(mode="after")
    def _names_some_keys(self) -> Self:
        if not self.keys and self.keys_file is None:
            raise refuse(
                "auth has neither keys nor keys_file",
                "Add a hash from `qwenfleet keys new` to auth.keys, or write `auth: none` to allow "
                "anyone.",
            )
        return self


def _only_none(value: object) -> object:
    if value == "none":
        return value
    raise refuse(
        "auth is neither a mapping nor the word none",
        "Write `auth: none` to allow anyone, or a mapping with keys or keys_file.",
    )


def _kind(value: object) -> str:
    return "keys" if isinstance(value, Mapping | AuthConfig) else "none"


AuthSetting = Annotated[
    Annotated[Literal["none"], BeforeValidator(_only_none), Tag("none")]
    | Annotated[AuthConfig, Tag("keys")],
    Discriminator(_kind),
]
"""Values of `auth:`. A wrong value is validated as the one form that it looks like."""


def new_key() -> str:
    """Return a new random key."""
    return KEY_PREFIX + secrets.token_urlsafe(KEY_BYTES)


def hash_of(key: str) -> KeyHash:
    """Return the hash that a fleet stores in place of the key."""
    return f"sha256:{hashlib.sha256(key.encode()).hexdigest()}"


class Keyring:
    """A set of keys, known by their hashes.

    A look-up takes the same time for any wrong key, however much of it is right: it compares
    SHA-256 digests, which share nothing if the keys differ in one bit, and it compares two digests
    only after Python's 64-bit hashes of them matched. Comparing digest by digest with
    `hmac.compare_digest`, which takes as long for a right key as for a wrong one, cost 0.05 us a
    key: 0.5 ms of the event loop for 10,000 keys. This look-up takes 0.03 us.
    """

    def __init__(self, hashes: Iterable[KeyHash], names: Mapping[KeyHash, str] = NO_NAMES) -> None:
        self._names = {_digest(one): names.get(one, "") for one in hashes}

    def __len__(self) -> int:
        return len(self._names)

    def holds(self, key: bytes) -> bool:
        return len(key) <= MAX_KEY_BYTES and hashlib.sha256(key).digest() in self._names

    def name_of(self, key: bytes) -> str:
        """Return the name of a key that it holds; without one, the start of the key's hash."""
        digest = hashlib.sha256(key).digest()
        return self._names[digest] or digest.hex()[:SHOWN_DIGITS]


def read_keys(path: str) -> tuple[KeyHash, ...]:
    """Return the hashes in a keys file, which may be empty. Raises ConfigError with the line of the
    first wrong hash."""
    return tuple(read_named_keys(path))


def read_named_keys(path: str) -> dict[KeyHash, str]:
    """Return the hashes in a keys file, each with the comment after it, which is its name. Raises
    ConfigError as read_keys does."""
    try:
        kind = Path(path).stat().st_mode
        if not stat.S_ISREG(kind):
            raise ConfigError(
                "not a regular file", "Set auth.keys_file to a file with one hash per line.", path
            )
        with open(path, "rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        problem = f"the keys file cannot be read: {error.strerror}"
        raise ConfigError(problem, "Check auth.keys_file and its permissions.", path) from error
    if len(data) > MAX_FILE_BYTES:
        problem = f"the keys file is larger than {MAX_FILE_BYTES} bytes"
        raise ConfigError(problem, "Keep one hash per line, and nothing else.", path)
    return dict(_lines(data, path))


def _lines(data: bytes, path: str) -> Iterable[tuple[KeyHash, str]]:
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").splitlines(), start=1):
        before, _, comment = line.decode("utf-8", errors="replace").partition("#")
        text = before.strip()
        if text and not _is_hash(text):
            raise ConfigError(NOT_A_HASH, WANTED, path, number)
        if text:
            yield text, _name(comment)


def _name(comment: str) -> str:
    """Return a comment as a name for logs; empty if it could be a key by mistake."""
    name = " ".join(comment.split())[:MAX_NAME_CHARACTERS]
    return "" if KEY_PREFIX in name or not name.isprintable() else name


def _digest(one: KeyHash) -> bytes:
    return bytes.fromhex(one.removeprefix("sha256:"))


def known_hashes(auth: AuthConfig) -> tuple[KeyHash, ...]:
    """Return the hashes of both fields. Raises ConfigError if the file cannot be read or has a
    wrong line."""
    return auth.keys + (() if auth.keys_file is None else read_keys(auth.keys_file))
