"""Frames: what a gateway and an engine say to each other.

One connection per gateway and engine. A frame is a msgpack map with a `kind`; `encoding` writes it,
`segments` cuts it. The greeting is Hello, Challenge, Proof, Welcome, or Refused as any answer.

Compatibility: only equal protocol versions understand each other. Hello and Refused stay readable
for other versions, so that a refusal can say why. Within one version fields are only ever added, at
the end and with a default; a reader ignores fields and kinds that it does not know.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, Final, Generic

import msgspec
from typing_extensions import TypeVar

from qwenfleet.cluster.labels import Loss
from qwenfleet.deployments.wire.tokens import TokenIds

PROTOCOL_VERSION: Final = 2
FIRST_FRAME_BYTES: Final = 4096
"""Limit of a frame before its sender has proved the secret; Hello and Proof are below 300 bytes."""
SMALL_FRAME_BYTES: Final = 64 * 1024
"""Limit of a frame of most kinds."""
MAX_SUBMIT_BYTES: Final = 16 * 1024 * 1024
"""1M tokens are 4 MB, and vLLM's parameters with the largest grammar a few more."""
MAX_OUTPUTS_BYTES: Final = 64 * 1024 * 1024
"""The prompt logprobs of one output; plain outputs of a step are 8 KB."""
MAX_NUMBERS: Final = 4096
"""Numbers of attempts in one frame: 20 to 36 KB."""
MAX_NAME_BYTES: Final = 40
"""Limit of a session's id, which is part of ids in a core."""
SHOWN_CHARS: Final = 64
"""Characters of a client's request id that an engine sees, in traces and logs only."""
MAX_REASON_CHARS: Final = 2000
"""Limit of a reason: vLLM's errors may quote a whole grammar."""

Id = TypeVar("Id", bound=int | str, default=int)
"""int on the wire: a number that the gateway chose, for one attempt of a session. str inside an
engine: the id that its core knows."""


class Frame(msgspec.Struct, tag_field="kind", omit_defaults=True):
    """Anything that crosses the wire."""

    limit_bytes: ClassVar[int] = SMALL_FRAME_BYTES
    """Largest encoded size."""

    def about(self) -> Iterable[int]:
        """Attempts whose frames must arrive in the order in which they were sent."""
        return ()


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


class Output(
    msgspec.Struct, Generic[Id], array_like=True, omit_defaults=True, gc=False, frozen=True
):
    """New tokens of one attempt."""

    wire_id: Id
    token_ids: list[int]
    finish_reason: int | None = None
    stop_reason: int | str | None = None
    cached_tokens: int | None = None
    """Prompt tokens that needed no prefill; set once, with the first tokens."""
    extra: bytes | None = None
    """vLLM's whole EngineCoreOutput, if it holds more than the fields above."""


def numbered(output: Output[str], number: int) -> Output:
    """Return a core's output under the number that its gateway chose."""
    return Output(
        number,
        output.token_ids,
        output.finish_reason,
        output.stop_reason,
        output.cached_tokens,
        output.extra,
    )


# Gateway to engine.


class Hello(Frame, tag="hello"):
    """First frame. Every version reads it."""

    limit_bytes: ClassVar[int] = FIRST_FRAME_BYTES

    gateway: str
    """Id of this session: the gateway's id and a nonce, so that a gateway can reconnect while its
    earlier session is still open. A host has one session of each id."""
    protocol: int = 1
    vllm_version: str = ""
    """The vLLM that encodes this gateway's requests; empty if unknown."""
    nonce: bytes = b""
    """Random bytes, for the engine's proof."""


class Proof(Frame, tag="proof"):
    """The answer to a Challenge."""

    limit_bytes: ClassVar[int] = FIRST_FRAME_BYTES

    proof: bytes
    """`secret.gateway_proof` of both nonces."""


class Submit(Frame, tag="submit"):
    """One attempt at one request. `request` is vLLM's EngineCoreRequest without its prompt
    tokens."""

    limit_bytes: ClassVar[int] = MAX_SUBMIT_BYTES

    request_id: str
    """The client's id, of at most SHOWN_CHARS characters."""
    attempt: int
    prompt_token_ids: TokenIds
    request: bytes
    max_tokens: int | None = None
    output_token_ids: TokenIds = msgspec.field(default_factory=TokenIds)
    """Tokens that earlier attempts delivered; the engine continues after them."""
    priority: int = 0
    cache_salt: str | None = None
    dp_rank: int | None = None
    is_trial: bool = False
    """Suspected of having crashed a core: the host gives the core one such attempt at a time."""
    trace_headers: dict[str, str] | None = None
    """W3C trace context of this attempt; None if it is not traced."""
    number: int = 0
    """The attempt's id in every other frame. Never used twice in a session."""

    def about(self) -> Iterable[int]:
        return (self.number,)


class Abort(Frame, tag="abort"):
    wire_ids: list[int]

    def about(self) -> Iterable[int]:
        return self.wire_ids


class Lease(Frame, tag="lease"):
    """The gateway is alive: keep its requests for another lease."""


class Renew(Frame, tag="renew"):
    """The same, from the gateway's lease pump: the only frames of a connection without Hello."""

    limit_bytes: ClassVar[int] = FIRST_FRAME_BYTES

    session: str
    key: bytes
    """The `lease_key` of the session's Welcome."""


# Engine to gateway.


class Challenge(Frame, tag="challenge"):
    """The answer to a Hello: prove that you know the secret."""

    nonce: bytes


class Welcome(Frame, tag="welcome"):
    """The answer to a right Proof."""

    engine: str
    model: str
    description: EngineDescription
    lease_s: float = 0.0
    proof: bytes = b""
    """`secret.engine_proof` of both nonces: whatever listens at an engine's former address does not
    get its requests."""
    lease_key: bytes = b""
    """Opens connections that renew this session's lease, and nothing else."""


class Refused(Frame, tag="refused"):
    """The engine refuses this gateway: wrong secret, version or session id. Every version reads
    it."""

    reason: str
    protocol: int = 1
    """The engine's; version 1 does not send it."""


class Rejected(Frame, tag="rejected"):
    """The engine refuses this attempt and holds nothing for it."""

    wire_id: int
    reason: str
    is_final: bool = True
    """Whether another engine would refuse it too."""
    is_fault: bool = False
    """Whether the engine failed to take it for a reason that nobody foresaw: then the request
    itself may be the cause."""

    def about(self) -> Iterable[int]:
        return (self.wire_id,)


class Trying(Frame, tag="trying"):
    """This suspect goes to the core now; sent just before."""

    wire_id: int

    def about(self) -> Iterable[int]:
        return (self.wire_id,)


class Outputs(Frame, tag="outputs"):
    """All outputs of one engine step for one gateway."""

    limit_bytes: ClassVar[int] = MAX_OUTPUTS_BYTES

    outputs: list[Output[int]]
    load: list[RankLoad] = []
    received: list[int] = []
    """Numbers of the attempts that came since the frame before, and that the load now includes."""
    step: int = 0
    clock_s: float = 0.0
    """The host's monotonic clock, so that the gateway can convert times of engine events to its
    own."""

    def about(self) -> Iterable[int]:
        return [output.wire_id for output in self.outputs]


class Alive(Frame, tag="alive"):
    """Two separate signs of life: the host is alive (this frame came) and the core makes progress
    (`step` moved)."""

    load: list[RankLoad] = []
    received: list[int] = []
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

    limit_bytes: ClassVar[int] = MAX_OUTPUTS_BYTES

    dp_rank: int
    sequence: int
    stored: bytes = b""
    removed: bytes = b""
    cleared: bool = False


class KvSnapshot(Frame, tag="kv_snapshot"):
    """All cached blocks of one rank as of `sequence`, for a gateway that joins late or missed an
    event."""

    limit_bytes: ClassVar[int] = MAX_OUTPUTS_BYTES

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
    | Proof
    | Submit
    | Abort
    | Lease
    | Renew
    | Challenge
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


class UnreadableSubmit(msgspec.Struct):
    """A Submit of which only the number can be decoded. Never sent."""

    number: int
    problem: str = ""


def shortened(reason: str) -> str:
    """Return a reason that every frame can carry."""
    return reason if len(reason) <= MAX_REASON_CHARS else f"{reason[:MAX_REASON_CHARS]}…"


def speaks(protocol: int) -> bool:
    """True if this program can talk to a peer of this protocol version."""
    return protocol == PROTOCOL_VERSION


def pairs(vllm_version: str, other: str) -> bool:
    """True if the vLLMs of a gateway and an engine read each other's structs: they are positional,
    so only equal versions do. Builds of one version ("0.32.0+cpu") are equal, and an unknown
    version (a scripted engine's) pairs with any."""
    here, there = vllm_version.partition("+")[0], other.partition("+")[0]
    return not here or not there or here == there
