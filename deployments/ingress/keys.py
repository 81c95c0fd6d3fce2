"""Guard: lets requests pass whose key the fleet knows, and takes the key out of what passes.

It looks at headers only, before a body is read; no key reaches a log, a span or vLLM's app.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Iterable
from typing import Final, Literal

from starlette.types import Scope

from qwenfleet.cluster.config.auth import AuthConfig, KeyHash, Keyring, read_keys
from qwenfleet.cluster.errors import ConfigError
from qwenfleet.deployments.ingress.errors import MissingKey, WrongKey

logger = logging.getLogger(__name__)

OPEN_ROUTES: Final = frozenset({"/health/live", "/health/ready"})
"""Need no key. Serve and HAProxy probe `/-/healthz` and `/-/routes`, which Serve's replica answers
by itself (ray 2.60 `serve/_private/replica.py`)."""
KEY_HEADERS: Final = frozenset({b"authorization", b"x-api-key"})
RELOAD_S: Final = 1.0
"""How late a gateway notices that its keys file changed."""

Stamp = tuple[int, ...]


class Guard:
    """Checks keys; `watch` keeps them fresh where they come from a file."""

    def __init__(self, auth: AuthConfig | Literal["none"] | None) -> None:
        """Raises ConfigError when there is a keys file that cannot be used."""
        self._keyring: Keyring | None = None
        self._auth = auth if isinstance(auth, AuthConfig) else None
        self._stamp: Stamp | None = None
        self._complaint = ""
        if self._auth is not None:
            path = self._auth.keys_file
            self._stamp = None if path is None else _stamp(path)
            self._adopt(() if path is None else read_keys(path))

    @property
    def has_file(self) -> bool:
        return self._auth is not None and self._auth.keys_file is not None

    def admit(self, scope: Scope) -> Scope:
        """The request without its key. Raises MissingKey or WrongKey."""
        offers: dict[bytes, bytes] = {}
        kept = []
        for pair in scope["headers"]:
            if pair[0] in KEY_HEADERS:
                offers.setdefault(*pair)  # of a header that comes twice, the first counts
            else:
                kept.append(pair)
        if self._keyring is not None and scope["path"] not in OPEN_ROUTES:
            _check(self._keyring, offers)
        return {**scope, "headers": kept} if offers else scope

    async def watch(self, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
        """Look for a change of the file for ever, in a thread: its disk may be slow."""
        while True:
            await sleep(RELOAD_S)
            await asyncio.to_thread(self.reload)

    def reload(self) -> None:
        """Take up the file if it changed; one that cannot be used leaves the last good keys."""
        assert self._auth is not None
        assert self._auth.keys_file is not None
        path = self._auth.keys_file
        stamp = _stamp(path)
        if stamp is not None and stamp == self._stamp:
            return
        try:
            hashes = read_keys(path)
        except ConfigError as error:
            if str(error) != self._complaint:
                self._complaint = str(error)
                logger.error("keys file not taken up", extra={"problem": self._complaint})
            return
        self._stamp = stamp
        self._complaint = ""
        self._adopt(hashes)

    def _adopt(self, from_file: Iterable[KeyHash]) -> None:
        assert self._auth is not None
        self._keyring = Keyring((*self._auth.keys, *from_file))
        count = len(self._keyring)
        if count:
            logger.info("keys taken up", extra={"keys": count})
        else:
            logger.warning("the keys file is empty: every request is refused")


def _check(keyring: Keyring, offers: dict[bytes, bytes]) -> None:
    """Either header may hold the key: clients of the Anthropic API can send both."""
    keys = [key for name, value in offers.items() if (key := _key_in(name, value))]
    if not keys:
        raise MissingKey
    if not any(keyring.holds(key) for key in keys):
        raise WrongKey


def _key_in(name: bytes, value: bytes) -> bytes:
    """Empty when there is none, as in another scheme of `Authorization`."""
    value = value.strip(b" \t")
    if name == b"x-api-key":
        return value
    scheme, _, key = value.partition(b" ")
    return key.strip(b" \t") if scheme.lower() == b"bearer" else b""


def _stamp(path: str) -> Stamp | None:
    """What tells that a file is another, or was written: a mounted Kubernetes secret is a link
    that comes to lead elsewhere. None when it cannot be seen."""
    try:
        seen = os.stat(path)
    except OSError:
        return None
    return seen.st_dev, seen.st_ino, seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns
