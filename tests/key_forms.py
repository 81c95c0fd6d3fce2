"""Ways to send a key, and what each must get: the forms that were tried against a fleet.

`KEY` is the fleet's, `OTHER` is not. Each form is the header lines of a raw request.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

KEY: Final = "qf-mine-0123456789-0123456789-0123456789-01234"
OTHER: Final = "qf-hers-0123456789-0123456789-0123456789-01234"
SERVED, REFUSED = frozenset({200}), frozenset({400, 401})
"""400: the HTTP server itself refuses the request."""


@dataclass(frozen=True)
class KeyForm:
    name: str
    lines: tuple[bytes, ...]
    statuses: frozenset[int] = REFUSED
    query: str = ""


def _form(name: str, *lines: str | bytes, served: bool = False, query: str = "") -> KeyForm:
    encoded = tuple(
        (line if isinstance(line, bytes) else line.encode())
        .replace(b"KEY", KEY.encode())
        .replace(b"OTHER", OTHER.encode())
        for line in lines
    )
    return KeyForm(name, encoded, SERVED if served else REFUSED, query)


KEY_FORMS: Final = (
    _form("the bearer", "Authorization: Bearer KEY", served=True),
    _form("names and scheme in other case", "aUTHORIZATION: bEARER KEY", served=True),
    _form("x-api-key", "X-API-Key: KEY", served=True),
    _form("both headers, one wrong", "X-Api-Key: OTHER", "Authorization: Bearer KEY", served=True),
    _form("no key"),
    _form("another key", "Authorization: Bearer OTHER"),
    _form("an empty bearer", "Authorization: Bearer "),
    _form("an empty header", "Authorization:"),
    _form("an empty x-api-key", "X-Api-Key:"),
    _form("a key without its scheme", "Authorization: KEY"),
    _form("basic credentials", "Authorization: Basic KEY"),
    _form("another scheme", "Authorization: Token KEY"),
    _form("a key in other case", f"Authorization: Bearer {KEY.upper()}"),
    _form("a key cut short", f"Authorization: Bearer {KEY[:-1]}"),
    _form("a key with more", "Authorization: Bearer KEYx"),
    _form("two keys in one header", "Authorization: Bearer OTHER, Bearer KEY"),
    _form("a second header", "Authorization: Bearer OTHER", "Authorization: Bearer KEY"),
    _form("a second x-api-key", "X-Api-Key: OTHER", "X-Api-Key: KEY"),
    _form("a quoted key", 'Authorization: Bearer "KEY"'),
    _form("a NUL after the key", b"Authorization: Bearer KEY\0"),
    _form("a NUL in the name", b"Authorization\0: Bearer KEY"),
    _form("wide letters", "Authorization: Bearer " + KEY.replace("m", "\uff4d")),
    _form("bytes that are not text", b"X-Api-Key: \xff\xfe\x80"),
    _form("a space before the colon", "Authorization : Bearer KEY"),
    _form("a folded header", "X-Other: a", " Authorization: Bearer KEY"),
    _form("an underscore", "X_Api_Key: KEY"),
    _form("the query", query="?api_key=KEY&x-api-key=KEY&authorization=Bearer%20KEY"),
    _form("a cookie", "Cookie: authorization=Bearer KEY; x-api-key=KEY"),
    _form("a proxy's header", "Proxy-Authorization: Bearer KEY"),
    _form("a forwarded header", "X-Forwarded-Authorization: Bearer KEY", "X-Original-URL: /"),
    _form("a key that a hop removes", "Authorization: Bearer OTHER", "Connection: authorization"),
    _form("a pattern", "Authorization: Bearer *"),
    _form("a hash", "X-Api-Key: sha256:" + "0" * 64),
)


def request(form: KeyForm, body: bytes, path: str = "/v1/completions") -> bytes:
    """Return the raw request that sends a body with this form of a key."""
    target = path + form.query.replace("KEY", KEY)
    lines = [
        f"POST {target} HTTP/1.1".encode(),
        b"Host: fleet",
        b"Connection: close",
        *form.lines,
        b"Content-Type: application/json",
        b"Content-Length: %d" % len(body),
    ]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body
