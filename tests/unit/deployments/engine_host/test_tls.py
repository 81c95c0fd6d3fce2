"""TLS on the wire: both ends show a certificate of the fleet's own authority."""

from __future__ import annotations

import asyncio
import datetime
import ssl
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import NameOID

from qwenfleet.cluster.config.tls import TlsConfig
from qwenfleet.cluster.errors import ConfigError
from qwenfleet.deployments.dispatch.link import EngineLink
from qwenfleet.deployments.engine_host.port import Port
from qwenfleet.deployments.wire.lease_keeper import LeaseKeeper
from qwenfleet.deployments.wire.tls import ServerTls, client_context
from qwenfleet.deployments.wire.tokens import TokenIds

FOREVER = 1_000_000
DAY = datetime.timedelta(days=1)


class Authority:
    """Signs certificates."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder / name
        self._folder.mkdir()
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._certificate = self._signed(self._name, self._key, is_authority=True)
        self._write("authority", self._certificate.public_bytes(Encoding.PEM))

    def issue(self, name: str) -> TlsConfig:
        """Write a new certificate and its key, under this name."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate = self._signed(subject, key, is_authority=False)
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return TlsConfig(
            certificate=self._write(name, certificate.public_bytes(Encoding.PEM)),
            key=self._write(f"{name}-key", pem),
            authority=str(self._folder / "authority.pem"),
        )

    def _signed(self, subject: x509.Name, key: Any, *, is_authority: bool) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - DAY)
            .not_valid_after(now + DAY)
            .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
            .sign(self._key, hashes.SHA256())
        )

    def _write(self, name: str, pem: bytes) -> str:
        path = self._folder / f"{name}.pem"
        path.write_bytes(pem)
        return str(path)


@pytest.fixture
def authority(tmp_path: Path) -> Callable[[str], Authority]:
    return lambda name: Authority(tmp_path, name)


async def test_streams_run_over_tls_and_nothing_is_readable_on_the_way(
    serve_engine: Any, desk_over: Any, wire: Any, authority: Any, eventually: Any, tap: Any
) -> None:
    files = authority("fleet").issue("member")
    tls = wire.model_copy(update={"tls": files})
    engine = await serve_engine(wire=tls, num_tokens=5)
    record = await tap(engine.record)
    link, events, run = desk_over(record, tls)
    await eventually(lambda: link.is_open)
    run("cmpl-readable")
    await eventually(lambda: sum(len(f.outputs) for f in events.outputs) == 5)
    assert tap.seen
    assert b"cmpl-readable" not in tap.seen
    assert b"outputs" not in tap.seen


async def test_large_requests_pass_tls_and_small_ones_overtake_them(
    serve_engine: Any, desk_over: Any, wire: Any, authority: Any, eventually: Any
) -> None:
    tls = wire.model_copy(update={"tls": authority("fleet").issue("member")})
    engine = await serve_engine(wire=tls, num_tokens=1, limits={"max_model_len": 2_000_000})
    link, events, run = desk_over(engine.record, tls)
    await eventually(lambda: link.is_open)
    for number in (1, 2, 3):
        run("large", range(100_000, 400_000), number)
    run("small", [1], 4)
    await eventually(lambda: sum(len(f.outputs) for f in events.outputs) == 4)
    done = [output.wire_id for frame in events.outputs for output in frame.outputs]
    assert done[0] == 4
    assert sorted(done) == [1, 2, 3, 4]


@pytest.mark.parametrize("who", ["stranger", "none"])
async def test_a_gateway_without_a_certificate_of_the_authority_is_not_served(
    serve_engine: Any, desk_over: Any, wire: Any, authority: Any, eventually: Any, who: str
) -> None:
    engine = await serve_engine(
        wire=wire.model_copy(update={"tls": authority("fleet").issue("member")})
    )
    files = authority("other").issue("member") if who == "stranger" else None
    link, events, _ = desk_over(engine.record, wire.model_copy(update={"tls": files}))
    await eventually(lambda: events.losses)
    assert not engine.host._sessions
    assert link.description is None
    assert link.is_refused == (who == "stranger"), "so that it is logged, with the reason"


async def test_an_engine_without_a_certificate_of_the_authority_gets_no_request(
    serve_engine: Any, desk_over: Any, wire: Any, authority: Any, eventually: Any
) -> None:
    engine = await serve_engine(
        wire=wire.model_copy(update={"tls": authority("other").issue("member")})
    )
    files = authority("fleet").issue("member")
    _, events, _ = desk_over(engine.record, wire.model_copy(update={"tls": files}))
    await eventually(lambda: events.losses)
    assert "CERTIFICATE_VERIFY_FAILED" in events.losses[0][1]


def test_a_renewed_certificate_is_used_without_a_restart(
    authority: Any, caplog: pytest.LogCaptureFixture
) -> None:
    fleet = authority("fleet")
    files = fleet.issue("member")
    served = ServerTls(files)
    first = shown_by(served, client_context(files))
    served.refresh()
    assert shown_by(served, client_context(files)) == first
    Path(files.certificate).write_text("half written")
    served.refresh()
    assert "certificate not read" in caplog.text
    fleet.issue("member")
    client = client_context(files)
    assert shown_by(served, client) == first
    served.refresh()
    assert shown_by(served, client) != first


def shown_by(served: ServerTls, context: ssl.SSLContext) -> bytes | None:
    """Return the certificate that a server with this context shows."""
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(back, there)
    server = served.context.wrap_bio(there, back, server_side=True)
    for _ in range(5):
        for end in (client, server):
            with suppress(ssl.SSLWantReadError):
                end.do_handshake()
    return client.getpeercert(binary_form=True)


async def test_files_that_cannot_be_read_are_named(wire: Any) -> None:
    files = TlsConfig(certificate="/none/tls.crt", key="/none/tls.key", authority="/none/ca.crt")
    with pytest.raises(ConfigError, match=r"cannot read wire.tls \(/none/tls.crt"):
        await Port(wire.model_copy(update={"tls": files})).open("127.0.0.1", None)  # type: ignore[arg-type]


@pytest.fixture
def desk_over(events: Any) -> Any:
    """Return a function that connects a link with a configuration of the wire."""
    from qwenfleet.deployments.dispatch.link import EngineLink
    from qwenfleet.deployments.wire.frames import Submit

    tasks = []

    def connect(record: Any, wire: Any) -> Any:
        link = EngineLink(record, gateway="gw-a", wire=wire, events=events, clock=time.monotonic)
        tasks.append(asyncio.ensure_future(link.run()))

        def run(name: str, prompt: Iterable[int] = (1, 2, 3), number: int = 1) -> None:
            link.submit(Submit(name, 0, TokenIds(prompt), b"", number=number))

        return link, events, run

    yield connect
    for task in tasks:
        task.cancel()


class Tap:
    """A network that keeps what passes."""

    def __init__(self) -> None:
        self.seen = b""
        self._tasks: list[Any] = []

    async def __call__(self, record: Any) -> Any:
        from msgspec.structs import replace

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            far_reader, far_writer = await asyncio.open_connection(record.host, record.port)
            for source, sink in ((reader, far_writer), (far_reader, writer)):
                self._tasks.append(asyncio.ensure_future(self._pipe(source, sink)))

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        self._tasks.append(server)
        host, port = server.sockets[0].getsockname()[:2]
        return replace(record, host=host, port=port)

    async def _pipe(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(65536):
                self.seen += data
                sink.write(data)
        finally:
            sink.close()

    def close(self) -> None:
        for each in self._tasks:
            each.close() if hasattr(each, "sockets") else each.cancel()


@pytest.fixture
async def tap() -> Any:
    tap = Tap()
    yield tap
    tap.close()


async def test_leases_are_renewed_over_tls(
    serve_engine: Any, events: Any, wire: Any, authority: Any, eventually: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    files = authority("fleet").issue("member")
    tls = wire.model_copy(update={"tls": files, "lease_s": 3})
    engine = await serve_engine(wire=tls)
    keeper = LeaseKeeper()

    async def keep_no_lease(*_: Any) -> None:
        """Leave it to the pump."""

    monkeypatch.setattr(EngineLink, "_keep_lease", keep_no_lease)
    link = EngineLink(
        engine.record, gateway="gw-a", wire=tls, events=events, clock=time.monotonic, leases=keeper
    )
    running = [asyncio.create_task(work) for work in (link.run(), keeper.run())]
    await eventually(lambda: link.is_open)
    (session,) = engine.host._sessions.values()
    session.leased_until = 0
    await eventually(lambda: session.leased_until)
    for task in running:
        task.cancel()
    await asyncio.wait(running)
