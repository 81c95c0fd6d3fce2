"""The wire between a gateway and an engine: what is said on it, and as which bytes.

One TCP connection per gateway and engine. A frame is a 4-byte big-endian length and a msgpack map
with a `kind`. Compatibility: fields are only ever added, at the end and with a default; a reader
ignores fields and kinds that it does not know, so two programs one protocol version apart
understand each other.
"""

from __future__ import annotations

import logging
import struct
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
    """What one data-parallel rank of an engine is busy with."""

    dp_rank: int = 0
    running: int = 0
    waiting: int = 0
    queued_prefill_tokens: int = 0
    kv_usage: float = 0.0
    """Share of the KV cache in use, 0 to 1."""
    prefill_tokens_per_s: float = 0.0
    """New prompt tokens that it prefills per second, as its host has learned; 0 while unknown."""
    decode_step_s: float = 0.0
    """How long a step that only decodes takes it; 0 while unknown."""


class EngineDescription(msgspec.Struct, omit_defaults=True, frozen=True):
    """Limits of an engine as its core reports them after start; a gateway never computes these
    itself."""

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
    """vLLM's whole EngineCoreOutput, when it says more than this."""


# Gateway to engine.


class Hello(Frame, tag="hello"):
    """First frame. `owned` lists the wire ids that the gateway still wants; the host aborts its
    others."""

    gateway: str
    secret: str
    protocol: int = PROTOCOL_VERSION
    owned: list[str] = []


class Submit(Frame, tag="submit"):
    """One attempt at one request. `request` is vLLM's EngineCoreRequest without its prompt
    tokens."""

    request_id: str
    attempt: int
    prompt_token_ids: list[int]
    request: bytes
    max_tokens: int | None = None
    output_token_ids: list[int] = []
    """Tokens that earlier attempts delivered; the engine goes on behind them."""
    priority: int = 0
    cache_salt: str | None = None
    dp_rank: int | None = None
    is_trial: bool = False
    """Under suspicion of having killed a core: the host gives the core one such attempt at a
    time."""
    trace_headers: dict[str, str] | None = None
    """W3C trace context of this attempt; None when it is not traced."""


class Abort(Frame, tag="abort"):
    wire_ids: list[str]


class Lease(Frame, tag="lease"):
    """The gateway lives: keep its requests for another lease."""


# Engine to gateway.


class Welcome(Frame, tag="welcome"):
    engine: str
    model: str
    description: EngineDescription
    protocol: int = PROTOCOL_VERSION
    lease_s: float = 0.0


class Refused(Frame, tag="refused"):
    """The engine will not talk to this gateway: wrong secret or protocol."""

    reason: str


class Rejected(Frame, tag="rejected"):
    """The engine will not run this attempt; it holds nothing for it."""

    wire_id: str
    reason: str
    is_final: bool = True
    """Whether another engine would refuse it too."""


class Trying(Frame, tag="trying"):
    """The core has this suspect now; sent before it gets it."""

    wire_id: str


class Outputs(Frame, tag="outputs"):
    """All that one engine step made for one gateway."""

    outputs: list[Output]
    load: list[RankLoad] = []
    received: int = 0
    """How many Submit frames of this connection the load already counts."""
    step: int = 0
    clock_s: float = 0.0
    """The host's monotonic clock, so that the gateway can restamp engine events by its own."""


class Alive(Frame, tag="alive"):
    """Two separate signs: the host lives (this frame came) and the core made progress (`step`
    moved)."""

    load: list[RankLoad] = []
    received: int = 0
    step: int = 0
    step_age_s: float = 0.0
    """Seconds since the core's last step."""
    clock_s: float = 0.0
    condition: str = "steady"
    """What the host makes of the core's progress: a value of `bounds.Condition`."""
    reason: str = ""
    """Why that is not steady."""


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
    """The engine takes no new work and will be gone within `deadline_s` seconds."""

    reason: str
    deadline_s: float = 0.0


class Lost(Frame, tag="lost"):
    """The host ends: its core is dead, unless `is_drained` says that it was asked to go."""

    reason: str
    is_drained: bool = False
    is_frozen: bool = False
    """Whether the core made no progress, and lives."""
    unanswered: int = 0
    """Attempts that the core had and had made no token for: what it died of is most likely one."""

    @property
    def loss(self) -> Loss:
        """What the host's end is to the requests that it ran."""
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
"""What msgspec raises for bytes that are no message: bad strings and deep nesting included."""


class _Kind(msgspec.Struct):
    kind: str


def wire_id(gateway: str, request_id: str, attempt: int) -> str:
    """The id under which a core knows one attempt; the same id twice kills a core, so it is never
    reused."""
    return f"{request_id}.{attempt}@{gateway}"


def encode(frame: Frame) -> bytes:
    """Raises ProtocolError for a frame that no reader would accept."""
    body = _encoder.encode(frame)
    if len(body) > MAX_FRAME_BYTES:
        raise ProtocolError(f"a frame of {len(body)} bytes exceeds the limit of {MAX_FRAME_BYTES}")
    return LENGTH.pack(len(body)) + body


def decode(body: bytes) -> AnyFrame | None:
    """None for a kind from a newer protocol, which is skipped. Raises ProtocolError for anything
    broken."""
    try:
        return _decoder.decode(body)
    except msgspec.ValidationError as error:
        try:
            kind = msgspec.msgpack.decode(body, type=_Kind).kind
        except _BROKEN:
            kind = None
        if kind is None or kind in _KINDS:
            raise ProtocolError(f"cannot decode a frame of kind {kind!r}: {error}") from error
        logger.debug("skipped a frame of unknown kind", extra={"kind": kind})
        return None
    except _BROKEN as error:
        raise ProtocolError(f"cannot decode a frame as msgpack: {error}") from error


def speaks(protocol: int) -> bool:
    """Whether a peer of this protocol version and we understand each other."""
    return abs(protocol - PROTOCOL_VERSION) <= 1
