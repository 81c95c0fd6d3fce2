"""Guard: admits requests with a valid key, and removes the key from what passes.

It checks headers only, before a body is read. Keys do not reach logs, spans or vLLM's app.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, Literal

from starlette.types import Scope

from qwenfleet.cluster.config.auth import AuthConfig, KeyHash, Keyring, read_named_keys
from qwenfleet.cluster.errors import ConfigError
from qwenfleet.deployments.ingress.errors import MissingKey, WrongKey

logger = logging.getLogger(__name__)

OPEN_ROUTES: Final = frozenset({"/health/live", "/health/ready"})
"""Routes that need no key. Serve and HAProxy probe `/-/healthz` and `/-/routes`, which Serve's
replica answers itself (ray 2.60 `serve/_private/replica.py`)."""
KEY_HEADERS: Final = frozenset({b"authorization", b"x-api-key"})
RELOAD_S: Final = 1.0
"""How often a gateway checks its keys file for changes."""

Stamp = tuple[int, ...]


class Guard:
    """Checks keys; `watch` reloads them if they come from a file."""

    def __init__(self, auth: AuthConfig | Literal["none"] | None) -> None:
        """Raises ConfigError if the configured keys file cannot be used."""
        self._keyring: Keyring | None = None
        self._auth = auth if isinstance(auth, AuthConfig) else None
        self._stamp: Stamp | None = None
        self._complaint = ""
        if self._auth is not None:
            path = self._auth.keys_file
            self._stamp = None if path is None else _stamp(path)
            self._adopt({} if path is None else read_named_keys(path))

    @property
    def has_file(self) -> bool:
        return self._auth is not None and self._auth.keys_file is not None

    def admit(self, scope: Scope) -> Scope:
        """Return the request without its key. Raises MissingKey or WrongKey."""
        offers: dict[bytes, bytes] = {}
        kept = []
        for pair in scope["headers"]:
            if pair[0] in KEY_HEADERS:
                offers.setdefault(*pair)  # of a repeated header, the first counts
            else:
                kept.append(pair)
        if self._keyring is not None and scope["path"] not in OPEN_ROUTES:
            _check(self._keyring, offers)
        return {**scope, "headers": kept} if offers else scope

    def name_of(self, scope: Scope) -> str:
        """Return the name of the key that a request was admitted with; empty if it needs none."""
        if self._keyring is None or scope["path"] in OPEN_ROUTES:
            return ""
        keys = [_key_in(*pair) for pair in scope["headers"] if pair[0] in KEY_HEADERS]
        return next((self._keyring.name_of(key) for key in keys if self._keyring.holds(key)), "")

    async def watch(self, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
        """Check the file for changes forever, in a thread: its disk may be slow."""
        while True:
            await sleep(RELOAD_S)
            await asyncio.to_thread(self.reload)

    def reload(self) -> None:
        """Reload the file if it changed; if it cannot be used, the last good keys stay."""
        assert self._auth is not None
        assert self._auth.keys_file is not None
        path = self._auth.keys_file
        stamp = _stamp(path)
        if stamp is not None and stamp == self._stamp:
            return
        try:
            hashes = read_named_keys(path)
        except ConfigError as error:
            if str(error) != self._complaint:
                self._complaint = str(error)
                logger.error("keys file not reloaded", extra={"problem": self._complaint})
            return
        self._stamp = stamp
        self._complaint = ""
        self._adopt(hashes)

    def _adopt(self, from_file: Mapping[KeyHash, str]) -> None:
        assert self._auth is not None
        self._keyring = Keyring((*self._auth.keys, *from_file), from_file)
        count = len(self._keyring)
        if count:
            logger.info("keys loaded", extra={"keys": count})
        else:
            logger.warning("keys file is empty: every request is refused")


def _check(keyring: Keyring, offers: dict[bytes, bytes]) -> None:
    """Raise unless one header holds a valid key: Anthropic clients can send both."""
    keys = [key for name, value in offers.items() if (key := _key_in(name, value))]
    if not keys:
        raise MissingKey
    if not any(keyring.holds(key) for key in keys):
        raise WrongKey


def _key_in(name: bytes, value: bytes) -> bytes:
    """Return the key in a header; empty if it has none, as with another `Authorization` scheme."""
    value = value.strip(b" \t")
    if name == b"x-api-key":
        return value
    scheme, _, key = value.partition(b" ")
    return key.strip(b" \t") if scheme.lower() == b"bearer" else b""


def _stamp(path: str) -> Stamp | None:
    """Return what changes when a file is replaced or written; None if it cannot be read. A mounted
    Kubernetes secret is a link whose target changes."""
    try:
        seen = os.stat(path)
    except OSError:
        return None
    return seen.st_dev, seen.st_ino, seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns
