"""Permissions of Ray's token files: anyone who has a token can run code on every node."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from qwenfleet.cluster.doctor.finding import Finding, Subject, note, ok
from qwenfleet.cluster.local import fleets

DEFAULT_TOKEN = Path(".ray", "auth_token")
"""Relative to the home directory: ray 2.60 `authentication_token_setup.py`."""


@dataclass(frozen=True)
class TokenFile:
    path: str
    mode: int
    """Permission bits."""


@dataclass(frozen=True)
class Tokens:
    files: tuple[TokenFile, ...]
    missing: str = ""
    """The file that RAY_AUTH_TOKEN_PATH names, if it does not exist."""


def read(environment: Mapping[str, str] = os.environ) -> Tokens:
    """Find Ray's default token, the one that the environment names, and those of this user's
    fleets."""
    named = environment.get("RAY_AUTH_TOKEN_PATH", "")
    paths = [Path(environment.get("HOME", "/")) / DEFAULT_TOKEN]
    paths += [Path(named)] if named else []
    paths += [Path(running.ray_token_path) for running in fleets.running()]
    files = tuple(
        TokenFile(str(path), stat.S_IMODE(path.stat().st_mode))
        for path in dict.fromkeys(paths)
        if path.is_file()
    )
    return Tokens(files, named if named and not Path(named).is_file() else "")


def judge(tokens: Tokens) -> list[Finding]:
    findings = []
    for file in tokens.files:
        if file.mode & 0o077:
            sentence = (
                f"{file.path} has mode {file.mode:04o}, so other users of this machine can use "
                "the token of a Ray cluster"
            )
            findings.append(note(Subject.RAY, sentence, f"Run `chmod 600 {file.path}`."))
    if tokens.missing:
        sentence = f"RAY_AUTH_TOKEN_PATH names {tokens.missing}, which does not exist"
        remedy = "Unset the variable, or put the cluster's token there."
        findings.append(note(Subject.RAY, sentence, remedy))
    count = len(tokens.files)
    summary = f"{count} token file{'' if count == 1 else 's'}, readable by this user only"
    return findings or ([ok(Subject.RAY, summary)] if count else [])
