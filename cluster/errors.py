"""Every way in which qwenfleet fails, as one tree whose sentences say what to do next.

    FleetError
    ├── ConfigError           a configuration file or an option is wrong
    ├── ModelSourceError      a model's weights cannot be found or read
    ├── Refusal
    │   ├── MachineError      this machine cannot run what was asked of it
    │   ├── FleetNotFound     no running fleet answers
    │   ├── StartTimeout      a fleet takes longer to start than somebody waits
    │   ├── DrainRefused      an engine was not drained
    │   ├── BenchmarkError    a benchmark cannot measure
    │   ├── KubernetesError   the Kubernetes API does not answer, or not what was asked
    │   └── PlanError         a model cannot be planned for, or a name is not known
    │       └── NoLayoutFits  every layout breaks a rule
    ├── EngineStartError      an engine did not come up
    ├── ProtocolError         gateway and engine do not understand each other
    └── RequestError          the answer to one HTTP request; its sentence is for the client
        ├── MalformedBody     400
        ├── ModelRequired     400
        ├── KeyRefused        401, with WWW-Authenticate
        │   ├── MissingKey
        │   └── WrongKey
        ├── UnknownModel      404
        ├── UnknownRoute      404
        ├── BodyTooLarge      413
        ├── Unavailable       503, with Retry-After
        │   ├── ModelLoading
        │   └── NoEngine
        ├── RequestKillsEngines  422
        ├── DeadlineExceeded  504
        ├── EngineRefused     500
        └── GatewayFailed     500

Each class keeps its constructor's arguments as fields and hands all of them to
``super().__init__``: ``Exception`` pickles as ``cls(*args)``, so errors cross actors whole.
Only a ``RequestError``'s sentence may be sent to a client; the others name files and machines.
"""

from collections.abc import Sequence


class FleetError(Exception):
    """Root of the tree: `except FleetError` catches what qwenfleet foresaw and nothing else."""

    status: int = 500
    kind: str = "server_error"
    """The "type" of the OpenAI error object."""
    code: str = "internal_error"
    """The "code" of the OpenAI error object."""
    retry_after_s: int | None = None
    """What to send as Retry-After, in seconds; None sends no such header."""


class ConfigError(FleetError):
    """A configuration file or a command-line option is wrong; `others` holds the next ones."""

    status = 400
    kind = "invalid_request_error"
    code = "config_invalid"

    def __init__(
        self,
        problem: str,
        remedy: str,
        file: str | None = None,
        line: int | None = None,
        key: str | None = None,
        others: tuple["ConfigError", ...] = (),
    ) -> None:
        super().__init__(problem, remedy, file, line, key, others)
        self.problem = problem
        self.remedy = remedy
        self.file = file
        self.line = line
        self.key = key
        self.others = others

    def __str__(self) -> str:
        line = "" if self.line is None else f" line {self.line}"
        where = "" if self.file is None else f"{self.file}{line}: "
        own = f"{where}{self.problem}. {self.remedy}"
        return "\n".join([own, *map(str, self.others)])


class ModelSourceError(FleetError):
    """A model's weights cannot be found or read."""

    code = "model_source"

    def __init__(self, source: str, problem: str, remedy: str) -> None:
        super().__init__(source, problem, remedy)
        self.source = source
        self.problem = problem
        self.remedy = remedy

    def __str__(self) -> str:
        return f"model source '{self.source}': {self.problem}. {self.remedy}"


class Refusal(FleetError):
    """What is wrong and the way out, in a sentence each."""

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(problem, remedy)
        self.problem = problem
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.problem}. {self.remedy}"


class MachineError(Refusal):
    """This machine cannot run what was asked: a port in use, too little memory, an old CPU."""

    code = "machine"


class FleetNotFound(Refusal):
    """A command that speaks to a running fleet found none."""

    code = "fleet_not_found"


class StartTimeout(Refusal):
    """A fleet did not come up in the time that somebody wanted to wait."""

    code = "start_timeout"


class DrainRefused(Refusal):
    """`qwenfleet drain` did not do what it was asked."""

    code = "drain"


class BenchmarkError(Refusal):
    """A benchmark cannot measure what it was asked to."""

    code = "benchmark"


class KubernetesError(Refusal):
    """The Kubernetes API refused or did not answer; `api_status` is its HTTP status, if any."""

    code = "kubernetes"

    def __init__(self, problem: str, remedy: str, api_status: int | None = None) -> None:
        super().__init__(problem, remedy)
        self.args = (problem, remedy, api_status)
        self.api_status = api_status


class PlanError(Refusal):
    """What the planner was asked about it does not know, or the numbers cannot be."""

    status = 400
    kind = "invalid_request_error"
    code = "plan"


class NoLayoutFits(PlanError):
    """No layout is legal and fits; `rule` is the name of the one that the nearest layout breaks."""

    code = "no_layout_fits"

    def __init__(self, problem: str, remedy: str, rule: str) -> None:
        super().__init__(problem, remedy)
        self.args = (problem, remedy, rule)
        self.rule = rule


class EngineStartError(FleetError):
    """An engine did not come up."""

    code = "engine_start"

    def __init__(self, model: str, reason: str, log_file: str | None = None) -> None:
        super().__init__(model, reason, log_file)
        self.model = model
        self.reason = reason
        self.log_file = log_file

    def __str__(self) -> str:
        log = "the engine's log" if self.log_file is None else self.log_file
        return f"an engine for model '{self.model}' did not start: {self.reason}. See {log}."


class ProtocolError(FleetError):
    """A peer broke the wire protocol, so its connection is of no further use."""

    code = "protocol_error"

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.problem = problem

    def __str__(self) -> str:
        return (
            f"wire protocol broken: {self.problem}. Run the same qwenfleet version on every node."
        )


class RequestError(FleetError):
    """What one HTTP request is answered with; its sentence may be shown to the client."""


class MalformedBody(RequestError):
    """The body is not what the route takes."""

    status = 400
    kind = "invalid_request_error"
    code = "malformed_body"

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.problem = problem

    def __str__(self) -> str:
        return f"the request body cannot be read: {self.problem}. Send one JSON object."


class ModelRequired(RequestError):
    """The request names no model and the fleet serves more than one."""

    status = 400
    kind = "invalid_request_error"
    code = "model_required"

    def __init__(self, available: Sequence[str]) -> None:
        super().__init__(tuple(available))
        self.available = tuple(available)

    def __str__(self) -> str:
        return f"the request names no model. Set 'model' to {_one_of(self.available)}."


class KeyRefused(RequestError):
    """The fleet wants an API key, and the request has none that it knows."""

    status = 401
    kind = "invalid_request_error"
    code = "invalid_api_key"


class MissingKey(KeyRefused):
    """No header holds a key."""

    def __str__(self) -> str:
        return (
            "the request has no API key. Send the header 'Authorization: Bearer KEY' or "
            "'x-api-key: KEY'."
        )


class WrongKey(KeyRefused):
    """The key is not one of the fleet's; it is not part of the sentence."""

    def __str__(self) -> str:
        return "the API key is none of this fleet's. Check it, or ask the operator for one."


class UnknownModel(RequestError):
    """The request names a model that this fleet does not serve."""

    status = 404
    kind = "not_found_error"
    code = "model_not_found"

    def __init__(self, model: str, available: Sequence[str]) -> None:
        super().__init__(model, tuple(available))
        self.model = model
        self.available = tuple(available)

    def __str__(self) -> str:
        return f"model '{self.model}' is not served here. Set 'model' to {_one_of(self.available)}."


class UnknownRoute(RequestError):
    """The request asks for a route that is not on the gateway's allow-list."""

    status = 404
    kind = "not_found_error"
    code = "route_not_found"

    def __init__(self, method: str, path: str) -> None:
        super().__init__(method, path)
        self.method = method
        self.path = path

    def __str__(self) -> str:
        return f"there is no route {self.method} {self.path}. Try POST /v1/chat/completions."


class BodyTooLarge(RequestError):
    """The body is larger than `gateway.max_body_bytes`; its size is None until it was read."""

    status = 413
    kind = "invalid_request_error"
    code = "body_too_large"

    def __init__(self, limit_bytes: int, body_bytes: int | None) -> None:
        super().__init__(limit_bytes, body_bytes)
        self.limit_bytes = limit_bytes
        self.body_bytes = body_bytes

    def __str__(self) -> str:
        size = "larger than" if self.body_bytes is None else f"{self.body_bytes} bytes, above"
        return (
            f"the request body is {size} the limit of {self.limit_bytes} bytes. "
            "Send less, or ask the operator to raise gateway.max_body_bytes."
        )


class Unavailable(RequestError):
    """A model that is served, but by no engine now."""

    status = 503
    kind = "service_unavailable"

    def __init__(self, model: str, retry_after_s: int) -> None:
        super().__init__(model, retry_after_s)
        self.model = model
        self.retry_after_s = retry_after_s


class ModelLoading(Unavailable):
    """The model is configured, but its first engine is still starting."""

    code = "model_loading"

    def __str__(self) -> str:
        return f"model '{self.model}' is still loading. Try again in {self.retry_after_s} s."


class NoEngine(Unavailable):
    """The model had engines, and none of them is there now."""

    code = "no_engine"

    def __str__(self) -> str:
        return f"no engine of model '{self.model}' is running. Try again in {self.retry_after_s} s."


class EngineRefused(RequestError):
    """An engine will not run the request, and no other would."""

    code = "engine_refused"

    def __init__(self, model: str, engine: str, reason: str) -> None:
        super().__init__(model, engine, reason)
        self.model = model
        self.engine = engine
        self.reason = reason

    def __str__(self) -> str:
        return (
            f"engine '{self.engine}' of model '{self.model}' does not run this request: "
            f"{self.reason}. Tell the operator: gateway and engine may be of two versions."
        )


class RequestKillsEngines(RequestError):
    """Engines died under this request: twice, the second time on trial, or too often by far.

    A status that SDKs do not retry: each try would cost another engine.
    """

    status = 422
    kind = "invalid_request_error"
    code = "request_kills_engines"

    def __init__(self, model: str) -> None:
        super().__init__(model)
        self.model = model

    def __str__(self) -> str:
        return (
            f"engines of model '{self.model}' crashed while they worked on this request, so it "
            "is not tried again. Change it before you send it again, and tell the operator."
        )


class DeadlineExceeded(RequestError):
    """The request ran into `gateway.request_timeout_s`."""

    status = 504
    kind = "timeout"
    code = "timeout"

    def __init__(self, timeout_s: float) -> None:
        super().__init__(timeout_s)
        self.timeout_s = timeout_s

    def __str__(self) -> str:
        return (
            f"the request was not finished within {self.timeout_s:g} s. "
            "Ask for fewer tokens, or try again when the fleet is less busy."
        )


class GatewayFailed(RequestError):
    """The gateway met an error that it did not foresee; its log has the stack."""

    def __str__(self) -> str:
        return "the gateway failed on this request. Send it again, or ask the operator for its log."


def _one_of(names: tuple[str, ...]) -> str:
    if not names:
        return "a model that the fleet serves; it serves none now"
    return " or ".join(f"'{name}'" for name in names)
