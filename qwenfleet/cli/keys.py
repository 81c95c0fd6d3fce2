"""`qwenfleet keys`: creates API keys and hashes existing ones."""

from __future__ import annotations

import argparse
import getpass
import string
import sys
from typing import Final

from qwenfleet.cli.options import Commands
from qwenfleet.cluster.config.auth import MAX_KEY_BYTES, hash_of, new_key
from qwenfleet.cluster.errors import ConfigError

MIN_KEY_CHARACTERS: Final = 20
"""Shortest accepted key: 119 bits if it consists of random letters and digits. A shorter key could
be guessed from its hash, because SHA-256 is fast."""
_VISIBLE: Final = frozenset(string.ascii_letters + string.digits + string.punctuation)
"""Characters that an HTTP header transmits unchanged."""


def add(commands: Commands) -> None:
    """Add `keys new` and `keys hash` to the command line."""
    keys = commands.add_parser("keys", help="create API keys and their hashes")
    which = keys.add_subparsers(required=True, metavar="COMMAND")
    new = which.add_parser(
        "new",
        help="create a key",
        description="Print a new key, and on a second line its hash for auth.keys or the keys "
        "file. Store the key now: it cannot be recovered from its hash.",
    )
    new.add_argument("--name", type=_name, default="", help="comment to add after the hash")
    new.set_defaults(command=_new)
    own = which.add_parser(
        "hash",
        help="print the hash of an existing key",
        description="Read one key from standard input and print its hash.",
    )
    own.set_defaults(command=_hash)


def line_of(key: str, name: str = "") -> str:
    """Return a key's line for the keys file."""
    return f"{hash_of(key)} # {name}" if name else hash_of(key)


def check_key(key: str) -> None:
    """Raise ConfigError, without showing the key, if a fleet cannot use it."""
    if key.startswith("sha256:"):
        raise ConfigError("the input is already a hash", "Give the key itself.")
    if not key:
        raise ConfigError("standard input is empty", "Write the key to it, in one line.")
    if not _VISIBLE.issuperset(key):
        raise ConfigError(
            "the key has a character other than visible ASCII, which an HTTP header cannot hold",
            "Write one key, in one line; `qwenfleet keys new` creates one.",
        )
    if not MIN_KEY_CHARACTERS <= len(key) <= MAX_KEY_BYTES:
        raise ConfigError(
            f"the key has {len(key)} characters; keys shorter than {MIN_KEY_CHARACTERS} can be "
            f"guessed from their hash, and gateways reject keys longer than {MAX_KEY_BYTES}",
            "`qwenfleet keys new` creates one with 46.",
        )


def _new(options: argparse.Namespace) -> None:
    key = new_key()
    print(key)
    print(line_of(key, options.name))


def _hash(options: argparse.Namespace) -> None:
    """Print the hash of the key on standard input; a terminal does not echo it."""
    key = getpass.getpass("key: ") if sys.stdin.isatty() else sys.stdin.read()
    key = key.strip()
    check_key(key)
    print(line_of(key))


def _name(text: str) -> str:
    if not text.isprintable():
        raise argparse.ArgumentTypeError(f"{text!r} has a character that cannot be printed")
    return text.strip()
