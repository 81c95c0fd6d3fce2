"""Errors of the planner, as fields from which each caller makes a message in its user's terms.

    PlanError             a model or a name is unknown, or the numbers are impossible
    ├── WrongQuantity     a number is out of range
    ├── ContextTooLong    the context exceeds the model's own
    ├── RequestTooLong    a request is longer than the context
    ├── NoSuchMachines    the cluster does not have the requested machines
    └── NoLayoutFits      every layout breaks a rule

The planner knows neither command-line options nor configuration keys: the caller that reports an
error passes its own terms to `word`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from qwenfleet.cluster.errors import Refusal


class Quantity(StrEnum):
    """The inputs of a plan, in words that name neither options nor keys."""

    MODEL = "the model"
    ACCELERATOR = "the accelerator"
    NODES = "the number of nodes"
    GPUS_PER_NODE = "the number of GPUs per node"
    LAYOUT = "the layout"
    CONTEXT = "the context"
    LONG_CONTEXT = "the long-context method"
    KV_DTYPE = "the KV cache dtype"
    MEMORY_SHARE = "the share of GPU memory for vLLM"
    CONCURRENCY = "the number of concurrent requests"
    PROMPT_TOKENS = "the prompt length"
    OUTPUT_TOKENS = "the output length"


@dataclass(frozen=True)
class Alternative:
    """A change of one quantity that makes a layout fit."""

    quantity: Quantity
    value: str | int
    layout: str
    """The layout that fits after the change, in its short form."""
    machines: str
    """The machines for that layout, such as `2 x 8 x H100`."""

    def __str__(self) -> str:
        match self.quantity:
            case Quantity.CONTEXT:
                return f"a context of {self.value:,} tokens in {self.layout}"
            case Quantity.KV_DTYPE:
                return f"an {self.value} KV cache in {self.layout}"
            case Quantity.MODEL:
                name = str(self.value).rpartition("/")[2]
                return f"{name} in {self.layout} on the same machines"
            case Quantity.LAYOUT:
                return f"{self.layout} on the same machines"
        return f"{self.layout} on {self.machines}"


@dataclass(frozen=True)
class Wording:
    """The caller's terms for the inputs of a plan: command-line options, or configuration keys."""

    names: Mapping[Quantity, str]
    """The caller cannot set a quantity that is missing here."""
    yarn: str = "choose YaRN"
    """The instruction that selects YaRN."""
    change: Callable[[Alternative], str] = str


PLAIN_WORDING: Final = Wording({quantity: quantity.value for quantity in Quantity})


class PlanError(Refusal):
    """The planner does not know a name, or the numbers are impossible."""

    status = 400
    kind = "invalid_request_error"
    code = "plan"

    def word(self, wording: Wording) -> None:
        """Rewrite the problem and the remedy in the caller's terms."""
        self.problem, self.remedy = self._sentences(wording)

    def _sentences(self, wording: Wording) -> tuple[str, str]:
        return self.problem, self.remedy


class WrongQuantity(PlanError):
    """A quantity is out of range; `wanted` describes the allowed values."""

    def __init__(self, quantity: Quantity, value: float, wanted: str) -> None:
        self.quantity = quantity
        self.value = value
        self.wanted = wanted
        super().__init__(*self._sentences(PLAIN_WORDING))
        self.args = (quantity, value, wanted)

    def _sentences(self, wording: Wording) -> tuple[str, str]:
        name = wording.names.get(self.quantity, self.quantity.value)
        return f"{name} is {self.value:g}", f"Give {self.wanted}."


class ContextTooLong(PlanError):
    """The context is longer than the model's own, and no long-context method is set."""

    def __init__(self, model: str, context_tokens: int, longest_tokens: int) -> None:
        self.model = model
        self.context_tokens = context_tokens
        self.longest_tokens = longest_tokens
        super().__init__(*self._sentences(PLAIN_WORDING))
        self.args = (model, context_tokens, longest_tokens)

    def _sentences(self, wording: Wording) -> tuple[str, str]:
        return (
            f"a context of {self.context_tokens:,} tokens exceeds the {self.longest_tokens:,} of "
            f"{self.model}, and no long-context method is set",
            f"Lower {wording.names[Quantity.CONTEXT]} to {self.longest_tokens:,} or less, or "
            f"{wording.yarn}, which slightly degrades short prompts.",
        )


class RequestTooLong(PlanError):
    """A request of the planned load is longer than the context."""

    def __init__(self, prompt_tokens: int, output_tokens: int, context_tokens: int) -> None:
        self.prompt_tokens = prompt_tokens
        self.output_tokens = output_tokens
        self.context_tokens = context_tokens
        super().__init__(*self._sentences(PLAIN_WORDING))
        self.args = (prompt_tokens, output_tokens, context_tokens)

    def _sentences(self, wording: Wording) -> tuple[str, str]:
        prompt = wording.names.get(Quantity.PROMPT_TOKENS)
        return (
            f"a request of {self.prompt_tokens:,} + {self.output_tokens:,} tokens is longer than "
            f"the context of {self.context_tokens:,}",
            f"Raise {wording.names[Quantity.CONTEXT]}{f', or lower {prompt}' if prompt else ''}.",
        )


class NoSuchMachines(PlanError):
    """A cluster has no machines to plan for, or none with the requested accelerator."""

    def __init__(self, has: str, accelerator: str | None, skipped: tuple[str, ...]) -> None:
        self.has = has
        self.accelerator = accelerator
        self.skipped = skipped
        super().__init__(*self._sentences(PLAIN_WORDING))
        self.args = (has, accelerator, skipped)

    def _sentences(self, wording: Wording) -> tuple[str, str]:
        machines = (Quantity.ACCELERATOR, Quantity.NODES, Quantity.GPUS_PER_NODE)
        first, second, third = (wording.names[quantity] for quantity in machines)
        lacks = f", and no {self.accelerator}" if self.accelerator else ""
        skipped = f" Skipped: {'; '.join(self.skipped)}." if self.skipped else ""
        return (
            f"the cluster has {self.has}{lacks}",
            f"Set {first}, {second} and {third} instead.{skipped}",
        )


class NoLayoutFits(PlanError):
    """No legal layout fits. `rule` names the rule that the nearest layout breaks; any one of
    `changes` makes a layout fit."""

    code = "no_layout_fits"

    def __init__(self, problem: str, rule: str, changes: tuple[Alternative, ...] = ()) -> None:
        self.problem = problem
        self.rule = rule
        self.changes = changes
        super().__init__(*self._sentences(PLAIN_WORDING))
        self.args = (problem, rule, changes)

    def _sentences(self, wording: Wording) -> tuple[str, str]:
        works = "; or ".join(map(wording.change, self.changes))
        remedy = (
            f"What works: {works}." if works else "No machine known to the planner can hold it."
        )
        return self.problem, remedy
