"""Tls: contexts for a wire that is encrypted, and on which both ends show a certificate.

Both ends accept any certificate that the fleet's own authority signed: engines are known by the
addresses of their nodes, which no certificate can name beforehand. Functions here read files and
block.
"""

from __future__ import annotations

import logging
import ssl
from pathlib import Path

from qwenfleet.cluster.config.tls import TlsConfig
from qwenfleet.cluster.errors import ConfigError

logger = logging.getLogger(__name__)


def client_context(files: TlsConfig) -> ssl.SSLContext:
    """Return a context for a connection to an engine. Raises ConfigError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    _load(context, files)
    return context


class ServerTls:
    """An engine's context, which follows its files: short-lived certificates are renewed while an
    engine runs."""

    def __init__(self, files: TlsConfig) -> None:
        """Raises ConfigError."""
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.verify_mode = ssl.CERT_REQUIRED
        self._files = files
        self._stamps = _stamps(files)
        _load(self.context, files)

    def refresh(self) -> None:
        """Read the files again if they changed; new connections use them."""
        stamps = _stamps(self._files)
        if stamps == self._stamps:
            return
        try:
            _load(self.context, self._files)
        except ConfigError as error:  # perhaps half written: try again
            logger.warning("certificate not read", extra={"reason": str(error)})
        else:
            self._stamps = stamps
            logger.info("certificate read again", extra={"file": self._files.certificate})


def _load(context: ssl.SSLContext, files: TlsConfig) -> None:
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_verify_locations(files.authority)
        context.load_cert_chain(files.certificate, files.key)
    except OSError as error:  # with ssl.SSLError
        raise ConfigError(
            f"cannot read wire.tls ({files.certificate}, {files.key}, {files.authority}): {error}",
            "Put PEM files there that fit together, readable for this process.",
        ) from error


def _stamps(files: TlsConfig) -> tuple[int, ...]:
    """Times of change of the files; 0 for a missing one."""
    paths = (files.certificate, files.key, files.authority)
    return tuple(Path(p).stat().st_mtime_ns if Path(p).exists() else 0 for p in paths)
