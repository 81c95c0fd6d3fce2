"""The wire between a gateway and an engine: its frames, and how they are encoded.

One TCP connection per gateway and engine. A frame is a 4-byte big-endian length and a msgpack map
with a `kind`. Compatibility: fields are only ever added, at the end and with a default; a reader
ignores fields and kinds that it does not know, so two programs one protocol version apart
understand each other.
"""

from __future__ import annotations

import logging
import struct
from contextlib import suppress
from typing import Final

import msgspec

from qwenfleet.cluster.errors import ProtocolError
from qwenfleet.cluster.labels import Loss

logger = logging.getLogger(__name__)

PROTOCOL_VERSION: Final = 1
MAX_FRAME_BYTES: Final = 256 * 1024 * 1024
"""A 1M-token prompt is 5 MB of msgpack; a frame beyond this bound is garbage, not a request."""
LENGTH: Final = struct.Struct(">I")


class Frame(msgspec.Struct, tag_field="kind", omit_defaults=True):
    """Anything that crosses the wire."""


class RankLoad(msgspec.Struct, omit_defaults=True, frozen=True):
    """The current load and speed of one data-parallel rank of an engine."""

    dp_rank: int = 0
    running: int = 0
    waiting: int = 0
    queued_prefill_tokens: int = 0
    kv_usage: float = 0.0
    """Share of the KV cache in use, 0 to 1."""
    prefill_tokens_per_s: float = 0.0
    """New prompt tokens prefilled per second, as its host has learned; 0 while unknown."""
    decode_step_s: float = 0.0
    """Seconds of a step that only decodes; 0 while unknown."""


class EngineDescription(msgspec.Struct, omit_defaults=True, frozen=True):
    """Limits of an engine, as its core reports them after start; a gateway never computes them."""

    max_model_len: int
    block_size: int = 16
    num_gpu_blocks: int = 0
    max_num_seqs: int = 0
    max_num_batched_tokens: int = 0
    data_parallel_size: int = 1
    hash_algorithm: str = ""
    vllm_version: str = ""


class Output(msgspec.Struct, array_like=True, omit_defaults=True, gc=False, frozen=True):
    """New tokens of one request."""

    wire_id: str
    token_ids: list[int]
    finish_reason: int | None = None
    stop_reason: int | str | None = None
    cached_tokens: int | None = None
    """Prompt tokens that needed no prefill; set once, with the first tokens."""
    extra: bytes | None = None
    """vLLM's whole EngineCoreOutput, if it holds more than the fields above."""


# Gateway to engine.


class Hello(Frame, tag="hello"):
    """First frame."""

    gateway: str
    """Id of this session: the gateway's id and a nonce, so that a gateway can reconnect while its
    earlier session is still open. A host has one session of each id."""
    secret: str
    protocol: int = PROTOCOL_VERSION
    vllm_version: str = ""
    """The vLLM that encodes this gateway's requests; empty if unknown."""


class Submit(Frame, tag="submit"):
    """One attempt at one request. `request` is vLLM's EngineCoreRequest without its prompt
    tokens."""

    request_id: str
    attempt: int
    prompt_token_ids: list[int]
    request: bytes
    max_tokens: int | None = None
    output_token_ids: list[int] = []
    """Tokens that earlier attempts delivered; the engine continues after them."""
    priority: int = 0
    cache_salt: str | None = None
    dp_rank: int | None = None
    is_trial: bool = False
    """Suspected of having crashed a core: the host gives the core one such attempt at a time."""
    trace_headers: dict[str, str] | None = None
    """W3C trace context of this attempt; None if it is not traced."""


class Abort(Frame, tag="abort"):
    wire_ids: list[str]


class Lease(Frame, tag="lease"):
    """The gateway is alive: keep its requests for another lease."""


# Engine to gateway.


class Welcome(Frame, tag="welcome"):
    engine: str
    model: str
    description: EngineDescription
    protocol: int = PROTOCOL_VERSION
    lease_s: float = 0.0


class Refused(Frame, tag="refused"):
    """The engine refuses this gateway: wrong secret, version or session id."""

    reason: str


class Rejected(Frame, tag="rejected"):
    """The engine refuses this attempt and holds nothing for it."""

    wire_id: str
    reason: str
    is_final: bool = True
    """Whether another engine would refuse it too."""
    is_fault: bool = False
    """Whether the engine failed to take it for a reason that nobody foresaw: then the request
    itself may be the cause."""


class Trying(Frame, tag="trying"):
    """This suspect goes to the core now; sent just before."""

    wire_id: str


class Outputs(Frame, tag="outputs"):
    """All outputs of one engine step for one gateway."""

    outputs: list[Output]
    load: list[RankLoad] = []
    received: int = 0
    """Number of Submit frames of this connection that the load already includes."""
    step: int = 0
    clock_s: float = 0.0
    """The host's monotonic clock, so that the gateway can convert times of engine events to its
    own."""


class Alive(Frame, tag="alive"):
    """Two separate signs of life: the host is alive (this frame came) and the core makes progress
    (`step` moved)."""

    load: list[RankLoad] = []
    received: int = 0
    step: int = 0
    step_age_s: float = 0.0
    """Seconds since the core's last step."""
    clock_s: float = 0.0
    condition: str = "steady"
    """The host's judgment of the core: a value of `liveness.Condition`."""
    reason: str = ""
    """Why the condition is not steady."""


class KvEvents(Frame, tag="kv_events"):
    """Prefix blocks that entered or left one rank's GPU cache, as 8-byte rolling hashes, in
    order."""

    dp_rank: int
    sequence: int
    stored: bytes = b""
    removed: bytes = b""
    cleared: bool = False


class KvSnapshot(Frame, tag="kv_snapshot"):
    """All cached blocks of one rank as of `sequence`, for a gateway that joins late or missed an
    event."""

    dp_rank: int
    sequence: int
    blocks: bytes = b""


class Draining(Frame, tag="draining"):
    """The engine takes no new work and ends within `deadline_s` seconds."""

    reason: str
    deadline_s: float = 0.0


class Lost(Frame, tag="lost"):
    """The host ends: its core is dead, or it was drained (`is_drained`)."""

    reason: str
    is_drained: bool = False
    is_frozen: bool = False
    """Whether the core is alive but made no progress."""
    unanswered: int = 0
    """Attempts in the core without a token: the cause of the crash is most likely one of them."""

    @property
    def loss(self) -> Loss:
        """The kind of loss for the requests that the host ran."""
        if self.is_drained:
            return Loss.DRAINED
        return Loss.FROZEN if self.is_frozen else Loss.CORE_DIED


AnyFrame = (
    Hello
    | Submit
    | Abort
    | Lease
    | Welcome
    | Refused
    | Rejected
    | Trying
    | Outputs
    | Alive
    | KvEvents
    | KvSnapshot
    | Draining
    | Lost
)
_KINDS: Final = frozenset(str(t.__struct_config__.tag) for t in AnyFrame.__args__)
_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final[msgspec.msgpack.Decoder[AnyFrame]] = msgspec.msgpack.Decoder(AnyFrame)


_BROKEN: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""Errors that msgspec raises for invalid bytes, including bad strings and deep nesting."""


class _Kind(msgspec.Struct):
    kind: str


class UnreadableSubmit(msgspec.Struct):
    """A Submit of which only the id can be decoded. Never sent."""

    request_id: str
    attempt: int
    problem: str = ""


def wire_id(session: str, request_id: str, attempt: int) -> str:
    """The id of one attempt in a core. Never reused: a duplicate id crashes a core."""
    return f"{request_id}.{attempt}@{session}"


def encode(frame: Frame) -> bytes:
    """Raises ProtocolError for a frame that is too large for any reader."""
    body = _encoder.encode(frame)
    if len(body) > MAX_FRAME_BYTES:
        raise ProtocolError(f"a frame of {len(body)} bytes exceeds the limit of {MAX_FRAME_BYTES}")
    return LENGTH.pack(len(body)) + body


def decode(body: bytes) -> AnyFrame | UnreadableSubmit | None:
    """Decode a frame; None for a kind from a newer protocol, which is skipped. Raises ProtocolError
    for anything invalid but the fields of a Submit, which concern one request only."""
    try:
        return _decoder.decode(body)
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


def speaks(protocol: int) -> bool:
    """True if this program can talk to a peer of this protocol version."""
    return abs(protocol - PROTOCOL_VERSION) <= 1


def pairs(vllm_version: str, other: str) -> bool:
    """True if the vLLMs of a gateway and an engine read each other's structs: they are positional,
    so only equal versions do. Builds of one version ("0.32.0+cpu") are equal, and an unknown
    version (a scripted engine's) pairs with any."""
    here, there = vllm_version.partition("+")[0], other.partition("+")[0]
    return not here or not there or here == there
