"""Who may use a fleet: hashes of API keys, in its configuration or in a file beside it.

A key is random, so one plain SHA-256 is enough to keep: there is no list of likely keys to try.
No key, and nothing that could be one, is ever part of an error's text.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from qwenfleet.cluster.config.section import Section, refuse
from qwenfleet.cluster.errors import ConfigError

KEY_PREFIX: Final = "qf-"
KEY_BYTES: Final = 32
"""Of randomness, which are 43 characters of base64."""
MAX_KEY_BYTES: Final = 512
"""What is longer is no key, and is not hashed."""
MAX_FILE_BYTES: Final = 8 * 2**20
"""A hundred thousand keys with a name each."""
HASH_PATTERN: Final = r"^sha256:[0-9a-fA-F]{64}$"
NO_HASH: Final = "is no hash of a key; it is not shown, for it may be a key"
WANTED: Final = "Write `sha256:` and 64 hexadecimal digits, as `qwenfleet keys hash` prints them."

_is_hash = re.compile(HASH_PATTERN).fullmatch


def _only_a_hash(value: object) -> object:
    """In place of pydantic's own sentence, which shows the value."""
    if isinstance(value, str) and _is_hash(value):
        return value
    raise refuse(f"this {NO_HASH}", WANTED)


KeyHash = Annotated[str, Field(pattern=HASH_PATTERN), BeforeValidator(_only_a_hash)]
"""`sha256:` and the 64 hexadecimal digits of a whole key's SHA-256."""


class AuthConfig(Section):
    """The keys that a fleet takes, those of both fields together."""

    keys: tuple[KeyHash, ...] = Field(
        default=(),
        strict=False,
        description="Hashes of keys, each `sha256:` and 64 hexadecimal digits, as `qwenfleet keys "
        "new` prints them. A change restarts the gateways.",
    )
    keys_file: str | None = Field(
        default=None,
        pattern=r"^/",
        description="Absolute path of a file, the same on every node with a gateway, that holds "
        "one such hash on each line, with `#` before comments; gateways read it again when it "
        "changes. null: there is none.",
    )

    @model_validator(mode="after")
    def _names_some_keys(self) -> Self:
        if not self.keys and self.keys_file is None:
            raise refuse(
                "auth has neither keys nor keys_file",
                "Add a hash of `qwenfleet keys new` to auth.keys, or write `auth: none` to let "
                "anyone in.",
            )
        return self


def _only_none(value: object) -> object:
    if value == "none":
        return value
    raise refuse(
        "auth is neither a mapping nor the word none",
        "Write `auth: none` to let anyone in, or a mapping with keys or keys_file.",
    )


def _kind(value: object) -> str:
    return "keys" if isinstance(value, Mapping | AuthConfig) else "none"


AuthSetting = Annotated[
    Annotated[Literal["none"], BeforeValidator(_only_none), Tag("none")]
    | Annotated[AuthConfig, Tag("keys")],
    Discriminator(_kind),
]
"""What `auth:` takes. A wrong value is judged as the one kind that it looks like."""


def new_key() -> str:
    """A key that nobody else has."""
    return KEY_PREFIX + secrets.token_urlsafe(KEY_BYTES)


def hash_of(key: str) -> KeyHash:
    """What a fleet keeps of a key."""
    return f"sha256:{hashlib.sha256(key.encode()).hexdigest()}"


class Keyring:
    """Knows keys by their hashes.

    A look-up takes the same time for any wrong key, however much of it is right: what it compares
    are SHA-256 digests, which share nothing when their keys differ in one bit, and it compares two
    of them only when Python's 64-bit hashes of them are equal already. Comparing with
    `hmac.compare_digest` digest by digest, which takes as long for a right key as for a wrong one,
    cost 0.05 us a key: 0.5 ms of the event loop for 10,000, where this takes 0.03 us.
    """

    def __init__(self, hashes: Iterable[KeyHash]) -> None:
        self._digests = frozenset(bytes.fromhex(one.removeprefix("sha256:")) for one in hashes)

    def __len__(self) -> int:
        return len(self._digests)

    def holds(self, key: bytes) -> bool:
        return len(key) <= MAX_KEY_BYTES and hashlib.sha256(key).digest() in self._digests


def read_keys(path: str) -> tuple[KeyHash, ...]:
    """The hashes in a keys file; none in an empty one. Raises ConfigError, with the line of a wrong
    one."""
    try:
        kind = Path(path).stat().st_mode
        if not stat.S_ISREG(kind):
            raise ConfigError("this is no file", "Name a file with one hash on each line.", path)
        with open(path, "rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        problem = f"the keys file cannot be read: {error.strerror}"
        raise ConfigError(problem, "Check auth.keys_file and permissions.", path) from error
    if len(data) > MAX_FILE_BYTES:
        problem = f"the keys file is larger than {MAX_FILE_BYTES} bytes"
        raise ConfigError(problem, "Keep one hash on each line, and nothing else.", path)
    return tuple(_hashes(data, path))


def _hashes(data: bytes, path: str) -> Iterable[KeyHash]:
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").splitlines(), start=1):
        text = line.partition(b"#")[0].strip().decode("ascii", errors="replace")
        if text and not _is_hash(text):
            raise ConfigError(f"this {NO_HASH}", WANTED, path, number)
        if text:
            yield text


def known_hashes(auth: AuthConfig) -> tuple[KeyHash, ...]:
    """Of both fields. Raises ConfigError when the file cannot be read or has a wrong line."""
    return auth.keys + (() if auth.keys_file is None else read_keys(auth.keys_file))
