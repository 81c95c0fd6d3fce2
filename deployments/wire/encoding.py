"""Encoding: frames as msgpack and back. Pure."""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import Final

import msgspec

from qwenfleet.cluster.errors import ProtocolError
from qwenfleet.deployments.wire.frames import AnyFrame, Frame, UnreadableSubmit
from qwenfleet.deployments.wire.tokens import TokenIds

logger = logging.getLogger(__name__)

_KINDS: Final = frozenset(str(t.__struct_config__.tag) for t in AnyFrame.__args__)


def _encode_tokens(value: object) -> memoryview:
    if isinstance(value, TokenIds):
        return memoryview(value)
    raise NotImplementedError(f"no frame can carry a {type(value).__name__}")


def _decode_tokens(kind: type, value: object) -> TokenIds:
    """Read token ids, packed or as a list. Raises ValueError, which names the field."""
    if kind is TokenIds and isinstance(value, bytes):
        return TokenIds.unpack(value)
    if kind is TokenIds and isinstance(value, list):
        return TokenIds(value)
    raise ValueError(f"token ids came as {type(value).__name__}")


_encoder: Final = msgspec.msgpack.Encoder(enc_hook=_encode_tokens)
_decoder: Final[msgspec.msgpack.Decoder[AnyFrame]] = msgspec.msgpack.Decoder(
    AnyFrame, dec_hook=_decode_tokens
)
_BROKEN: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""Errors that msgspec raises for invalid bytes, including bad strings and deep nesting."""


class _Kind(msgspec.Struct):
    kind: str


class FrameTooLarge(ProtocolError):
    """A frame that no reader accepts."""

    def __str__(self) -> str:
        return self.problem


def _check_size(frame: Frame, size_bytes: int) -> None:
    if size_bytes > frame.limit_bytes:
        kind = type(frame).__name__
        raise FrameTooLarge(
            f"a frame {kind} of {size_bytes} bytes exceeds the limit of {frame.limit_bytes}"
        )


def encode(frame: Frame) -> bytes:
    """Encode a frame. Raises FrameTooLarge."""
    body = _encoder.encode(frame)
    _check_size(frame, len(body))
    return body


def decode(body: bytes) -> AnyFrame | UnreadableSubmit | None:
    """Decode a frame; None for a kind from a newer protocol, which is skipped. Raises ProtocolError
    for anything invalid but the fields of a Submit, which concern one request only."""
    try:
        frame = _decoder.decode(body)
    except msgspec.ValidationError as error:
        try:
            kind = msgspec.msgpack.decode(body, type=_Kind).kind
        except _BROKEN:
            kind = None
        if kind == "submit":
            with suppress(*_BROKEN):
                attempt = msgspec.msgpack.decode(body, type=UnreadableSubmit)
                return msgspec.structs.replace(attempt, problem=str(error))
        if kind is None or kind in _KINDS:
            raise ProtocolError(f"cannot decode a frame of kind {kind!r}: {error}") from error
        logger.debug("skipped a frame of unknown kind", extra={"kind": kind})
        return None
    except _BROKEN as error:
        raise ProtocolError(f"cannot decode a frame as msgpack: {error}") from error
    _check_size(frame, len(body))
    return frame
