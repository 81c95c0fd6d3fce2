"""`qwenfleet keys`: makes API keys, and the hashes of keys that there are already."""

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
"""Of letters and digits at random that is 119 bits. A hash keeps secret only what cannot be
guessed: one SHA-256 is fast."""
_VISIBLE: Final = frozenset(string.ascii_letters + string.digits + string.punctuation)
"""What an HTTP header carries unchanged."""


def add(commands: Commands) -> None:
    """Add `keys new` and `keys hash` to the command line."""
    keys = commands.add_parser("keys", help="make API keys and their hashes")
    which = keys.add_subparsers(required=True, metavar="COMMAND")
    new = which.add_parser(
        "new",
        help="make a key",
        description="Print a new key, and on the second line its hash, which goes into auth.keys "
        "or the keys file. The key is shown this once: it cannot be told from its hash.",
    )
    new.add_argument("--name", type=_name, default="", help="a comment behind the hash")
    new.set_defaults(command=_new)
    own = which.add_parser(
        "hash",
        help="print the hash of a key that you have",
        description="Read one key from standard input, and print its hash.",
    )
    own.set_defaults(command=_hash)


def line_of(key: str, name: str = "") -> str:
    """What goes into the keys file."""
    return f"{hash_of(key)} # {name}" if name else hash_of(key)


def check_key(key: str) -> None:
    """Raises ConfigError, which does not show the key."""
    if key.startswith("sha256:"):
        raise ConfigError("this is a hash already", "Give the key that it was made of.")
    if not key:
        raise ConfigError("there is no key on standard input", "Write it there, in one line.")
    if not _VISIBLE.issuperset(key):
        raise ConfigError(
            "the key has a character that is no visible ASCII, which a header does not carry",
            "Write one key, in one line; `qwenfleet keys new` makes one.",
        )
    if not MIN_KEY_CHARACTERS <= len(key) <= MAX_KEY_BYTES:
        raise ConfigError(
            f"the key has {len(key)} characters; a shorter one than {MIN_KEY_CHARACTERS} can be "
            f"guessed from its hash, and gateways take none above {MAX_KEY_BYTES}",
            "`qwenfleet keys new` makes one of 46.",
        )


def _new(options: argparse.Namespace) -> None:
    key = new_key()
    print(key)
    print(line_of(key, options.name))


def _hash(options: argparse.Namespace) -> None:
    """A terminal does not show what is typed."""
    key = getpass.getpass("key: ") if sys.stdin.isatty() else sys.stdin.read()
    key = key.strip()
    check_key(key)
    print(line_of(key))


def _name(text: str) -> str:
    if not text.isprintable():
        raise argparse.ArgumentTypeError(f"{text!r} has a character that cannot be printed")
    return text.strip()
