"""Every way in which qwenfleet fails, as one tree whose sentences say what to do next.

    FleetError
    ├── ConfigError           a configuration file or an option is wrong
    ├── ModelSourceError      a model's weights cannot be found or read
    ├── Refusal
    │   ├── MachineError      this machine cannot run what was asked of it
    │   ├── FleetNotFound     no running fleet answers
    │   ├── MetricsError      an address of metrics cannot be read
    │   ├── StartTimeout      a fleet takes longer to start than somebody waits
    │   ├── DeployFailed      Ray did not take a fleet, or not let it go
    │   ├── DrainRefused      an engine was not drained
    │   ├── BenchmarkError    a benchmark cannot measure
    │   ├── KubernetesError   the Kubernetes API does not answer, or not what was asked
    │   └── PlanError         a model cannot be planned for: `plan_errors.py`
    ├── EngineStartError      an engine did not come up
    ├── ProtocolError         gateway and engine do not understand each other
    └── RequestError          the answer to one HTTP request: `deployments/ingress/errors.py`

Each class keeps its constructor's arguments as fields and hands all of them to
``super().__init__``: ``Exception`` pickles as ``cls(*args)``, so errors cross actors whole.
Only a ``RequestError``'s sentence may be sent to a client; the others name files and machines.
"""


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


class MetricsError(Refusal):
    """An address of metrics does not answer, or not with metrics."""

    code = "metrics"

    def __init__(self, url: str, problem: str, remedy: str) -> None:
        super().__init__(problem, remedy)
        self.args = (url, problem, remedy)
        self.url = url

    def __str__(self) -> str:
        return f"{self.url} {super().__str__()}"


class StartTimeout(Refusal):
    """A fleet did not come up in the time that somebody wanted to wait."""

    code = "start_timeout"


class DeployFailed(Refusal):
    """A job that deploys or removes a fleet was let down by its Ray cluster."""

    code = "deploy"


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
