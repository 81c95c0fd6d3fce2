"""Port: where a host listens for gateways, with TLS if it is configured."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final

from qwenfleet.cluster.config.fleet import WireConfig
from qwenfleet.deployments.wire.tls import ServerTls

TLS_REFRESH_S: Final = 60.0
"""Time between two looks at the files of TLS; Kubernetes renews mounted secrets within a minute."""

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Port:
    """A listening port, from `open` to `close`."""

    def __init__(self, wire: WireConfig) -> None:
        self._wire = wire
        self._server: asyncio.Server | None = None
        self._tls: ServerTls | None = None

    async def open(self, host: str, serve: Serve) -> tuple[str, int]:
        """Listen on a free port of `host`; returns the address. Raises ConfigError for files of TLS
        that cannot be read."""
        options: dict[str, Any] = {}
        if self._wire.tls is not None:
            self._tls = await asyncio.to_thread(ServerTls, self._wire.tls)
            options = {
                "ssl": self._tls.context,
                "ssl_handshake_timeout": self._wire.connect_timeout_s,
            }
        self._server = await asyncio.start_server(serve, host, 0, **options)
        name = self._server.sockets[0].getsockname()
        return str(name[0]), int(name[1])

    async def keep_fresh(self) -> None:
        """Follow changes of the files of TLS, for as long as the host runs."""
        while self._tls is not None:
            await asyncio.sleep(TLS_REFRESH_S)
            await asyncio.to_thread(self._tls.refresh)

    def close(self) -> None:
        """Accept no further connections."""
        if self._server is not None:
            self._server.close()
