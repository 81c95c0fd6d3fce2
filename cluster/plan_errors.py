"""Why a model cannot be planned for, with fields that each reader's words are made of.

    PlanError             a model or a name is not known, or the numbers cannot be
    ├── WrongQuantity     a number is out of range
    ├── ContextTooLong    the context is beyond the model's own
    ├── RequestTooLong    a request is longer than the context
    ├── NoSuchMachines    the cluster has no such machines
    └── NoLayoutFits      every layout breaks a rule

The planner names neither options of a command nor keys of a file: who reports an error calls
`word` with theirs.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from qwenfleet.cluster.errors import Refusal


class Quantity(StrEnum):
    """What a plan depends on, as an error calls it that knows neither options nor keys."""

    MODEL = "the model"
    ACCELERATOR = "the accelerator"
    NODES = "the number of nodes"
    GPUS_PER_NODE = "the number of GPUs per node"
    LAYOUT = "the layout"
    CONTEXT = "the context"
    LONG_CONTEXT = "the long-context method"
    KV_DTYPE = "the KV cache's type"
    MEMORY_SHARE = "the share of memory that vLLM may use"
    CONCURRENCY = "the number of requests at once"
    PROMPT_TOKENS = "the length of a prompt"
    OUTPUT_TOKENS = "the length of an answer"


@dataclass(frozen=True)
class Change:
    """One quantity with another value, after which a layout fits."""

    quantity: Quantity
    value: str | int
    layout: str
    """The layout that fits then, in its short form."""
    machines: str
    """What it runs on, such as `2 x 8 x H100`."""

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
    """How those who asked for a plan write what it depends on: options, or keys of a file."""

    names: Mapping[Quantity, str]
    """A quantity that is missing cannot be set by them."""
    yarn: str = "choose YaRN"
    """How they choose it."""
    change: Callable[[Change], str] = str


PLAIN_WORDING: Final = Wording({quantity: quantity.value for quantity in Quantity})


class PlanError(Refusal):
    """The planner does not know a name, or the numbers cannot be."""

    status = 400
    kind = "invalid_request_error"
    code = "plan"

    def word(self, wording: Wording) -> None:
        """Write problem and remedy again, in the words of those who asked."""
        self.problem, self.remedy = self._sentences(wording)

    def _sentences(self, wording: Wording) -> tuple[str, str]:
        return self.problem, self.remedy


class WrongQuantity(PlanError):
    """A quantity has a value that it cannot have; `wanted` is what it can be."""

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
    """The context is longer than the model's own, and no long-context method is chosen."""

    def __init__(self, model: str, context_tokens: int, longest_tokens: int) -> None:
        self.model = model
        self.context_tokens = context_tokens
        self.longest_tokens = longest_tokens
        super().__init__(*self._sentences(PLAIN_WORDING))
        self.args = (model, context_tokens, longest_tokens)

    def _sentences(self, wording: Wording) -> tuple[str, str]:
        return (
            f"a context of {self.context_tokens:,} tokens is beyond the {self.longest_tokens:,} of "
            f"{self.model}, and no long-context method is chosen",
            f"Lower {wording.names[Quantity.CONTEXT]} to {self.longest_tokens:,} or less, or "
            f"{wording.yarn}, which harms short prompts a little.",
        )


class RequestTooLong(PlanError):
    """One request of the load is longer than the context."""

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
    """A cluster has no machines to plan for, or none of the kind that was asked for."""

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
        skipped = f" Left out: {'; '.join(self.skipped)}." if self.skipped else ""
        return (
            f"the cluster has {self.has}{lacks}",
            f"Give {first}, {second} and {third} instead.{skipped}",
        )


class NoLayoutFits(PlanError):
    """No layout is legal and fits; `rule` is the name of the one that the nearest layout breaks,
    and each of `changes` is enough for one to fit."""

    code = "no_layout_fits"

    def __init__(self, problem: str, rule: str, changes: tuple[Change, ...] = ()) -> None:
        self.problem = problem
        self.rule = rule
        self.changes = changes
        super().__init__(*self._sentences(PLAIN_WORDING))
        self.args = (problem, rule, changes)

    def _sentences(self, wording: Wording) -> tuple[str, str]:
        works = "; or ".join(map(wording.change, self.changes))
        remedy = f"What works: {works}." if works else "No machine that the planner knows holds it."
        return self.problem, remedy
