"""Secret: how gateway and engine prove to each other that they know it, without sending it. Pure.

Each side answers the other's random nonce with HMAC-SHA256 under the secret. The proof covers both
nonces and the session, so that it fits no other connection, and its side, so that none can be sent
back to its maker.
"""

from __future__ import annotations

import hmac
import secrets
from typing import Final

NONCE_BYTES: Final = 32


def nonce() -> bytes:
    """Return fresh random bytes."""
    return secrets.token_bytes(NONCE_BYTES)


def gateway_proof(secret: str, session: str, gateway_nonce: bytes, engine_nonce: bytes) -> bytes:
    """Return what a gateway answers to a Challenge."""
    return _proof(secret, b"gateway", session, gateway_nonce, engine_nonce)


def engine_proof(secret: str, session: str, gateway_nonce: bytes, engine_nonce: bytes) -> bytes:
    """Return what an engine sends with its Welcome."""
    return _proof(secret, b"engine", session, gateway_nonce, engine_nonce)


def is_equal(proof: bytes, expected: bytes) -> bool:
    """Compare in a time that tells nothing about the expected bytes."""
    return hmac.compare_digest(proof, expected)


def _proof(
    secret: str, side: bytes, session: str, gateway_nonce: bytes, engine_nonce: bytes
) -> bytes:
    # Both nonces have a fixed length, so the parts cannot be read in two ways.
    message = b"\0".join((b"qwenfleet wire", side, gateway_nonce + engine_nonce, session.encode()))
    return hmac.digest(secret.encode(), message, "sha256")
