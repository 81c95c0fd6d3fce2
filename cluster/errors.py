"""All errors of qwenfleet in one tree; each message states the problem and the next step.

    FleetError
    ├── ConfigError           a configuration file or an option is wrong
    ├── ModelSourceError      a model's weights cannot be found or read
    ├── Refusal
    │   ├── MachineError      this machine cannot run the requested fleet
    │   ├── FleetNotFound     no running fleet answers
    │   ├── FleetLost         a running fleet lost a part that it cannot run without
    │   ├── MetricsError      a metrics endpoint cannot be read
    │   ├── StartTimeout      a fleet did not start within the time limit
    │   ├── DeployFailed      Ray did not deploy or remove a fleet
    │   ├── DrainRefused      an engine was not drained
    │   ├── BenchmarkError    a benchmark cannot measure
    │   ├── KubernetesError   the Kubernetes API failed or refused a request
    │   └── PlanError         a model cannot be planned for: `plan_errors.py`
    ├── EngineStartError      an engine did not start
    ├── GatewayStartError     a gateway did not start
    ├── ProtocolError         gateway and engine cannot understand each other
    └── RequestError          the error response to one HTTP request:
                              `deployments/ingress/errors.py`

Each class keeps its constructor's arguments as fields and passes all of them to
``super().__init__``: ``Exception`` pickles as ``cls(*args)``, so errors cross actors intact.
Only the message of a ``RequestError`` may be sent to a client; the others name files and machines.
"""

REASON_CHARS = 300
"""Enough for the first sentence of a message; what follows in it is mostly a traceback."""


class FleetError(Exception):
    """Root of the tree: `except FleetError` catches the errors that qwenfleet anticipates, only."""

    status: int = 500
    kind: str = "server_error"
    """The "type" of the OpenAI error object."""
    code: str = "internal_error"
    """The "code" of the OpenAI error object."""
    retry_after_s: int | None = None
    """Value of the Retry-After header, in seconds; None omits the header."""


class ConfigError(FleetError):
    """A configuration file or a command-line option is wrong; `others` holds further errors."""

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
    """A problem and its remedy, one sentence each."""

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(problem, remedy)
        self.problem = problem
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.problem}. {self.remedy}"


class MachineError(Refusal):
    """This machine cannot run the fleet: a port is in use, memory is short, or the CPU is old."""

    code = "machine"


class FleetNotFound(Refusal):
    """A command that needs a running fleet found none."""

    code = "fleet_not_found"


class FleetLost(Refusal):
    """A running fleet lost a part that it cannot run without."""

    code = "fleet_lost"


class MetricsError(Refusal):
    """A metrics endpoint does not answer, or answers with something else."""

    code = "metrics"

    def __init__(self, url: str, problem: str, remedy: str) -> None:
        super().__init__(problem, remedy)
        self.args = (url, problem, remedy)
        self.url = url

    def __str__(self) -> str:
        return f"{self.url} {super().__str__()}"


class StartTimeout(Refusal):
    """A fleet did not start within the time limit."""

    code = "start_timeout"


class DeployFailed(Refusal):
    """A Ray cluster failed to deploy or remove a fleet."""

    code = "deploy"


class DrainRefused(Refusal):
    """`qwenfleet drain` did not drain the engine."""

    code = "drain"


class BenchmarkError(Refusal):
    """A benchmark cannot take its measurement."""

    code = "benchmark"


class KubernetesError(Refusal):
    """The Kubernetes API refused or did not answer; `api_status` is its HTTP status, if any."""

    code = "kubernetes"

    def __init__(self, problem: str, remedy: str, api_status: int | None = None) -> None:
        super().__init__(problem, remedy)
        self.args = (problem, remedy, api_status)
        self.api_status = api_status


class EngineStartError(FleetError):
    """An engine did not start."""

    code = "engine_start"

    def __init__(self, model: str, reason: str, log_file: str | None = None) -> None:
        super().__init__(model, reason, log_file)
        self.model = model
        self.reason = reason
        self.log_file = log_file

    def __str__(self) -> str:
        log = "the engine's log" if self.log_file is None else self.log_file
        return f"an engine for model '{self.model}' did not start: {self.reason}. See {log}."


class GatewayStartError(FleetError):
    """A gateway did not start."""

    code = "gateway_start"

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(problem, remedy)
        self.problem = problem
        self.remedy = remedy

    def __str__(self) -> str:
        return f"a gateway did not start: {self.problem}. {self.remedy}"


class ProtocolError(FleetError):
    """A peer violated the protocol of the wire, which closes the connection, or of the registry."""

    code = "protocol_error"

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.problem = problem

    def __str__(self) -> str:
        return f"protocol violated: {self.problem}. Run the same qwenfleet version on every node."


def one_line(message: object, limit: int = REASON_CHARS) -> str:
    """Return another program's message as part of a sentence: on one line, with at most `limit`
    characters, and without the period at its end."""
    return " ".join(str(message).split())[:limit].rstrip(".")
