"""Errors about what constrains an answer: a schema, tools, an expression or a grammar.

RequestError
├── GrammarRefused    400
│   ├── GrammarInvalid
│   └── GrammarTooCostly
└── GrammarChecksBusy 429, with Retry-After
"""

from __future__ import annotations

from qwenfleet.deployments.ingress.errors import RequestError


class GrammarRefused(RequestError):
    """A schema, tool, expression or grammar of the request cannot constrain its answer."""

    status = 400
    kind = "invalid_request_error"


class GrammarInvalid(GrammarRefused):
    """It has no meaning, or no answer can follow it. `what` names its kind."""

    code = "invalid_grammar"

    def __init__(self, what: str, reason: str) -> None:
        super().__init__(what, reason)
        self.what = what
        self.reason = reason

    def __str__(self) -> str:
        return f"the request's {self.what} cannot be used: {self.reason}. Correct it."


class GrammarTooCostly(GrammarRefused):
    """It is larger than a limit, or takes too much time or memory. `setting` is the limit's."""

    code = "grammar_too_costly"

    def __init__(self, what: str, problem: str, limit: str, setting: str) -> None:
        super().__init__(what, problem, limit, setting)
        self.what = what
        self.problem = problem
        self.limit = limit
        self.setting = setting

    def __str__(self) -> str:
        return (
            f"the request's {self.what} {self.problem}, above the limit of {self.limit} "
            f"({self.setting}). Make it simpler."
        )


class GrammarChecksBusy(RequestError):
    """Too many new grammars wait to be compiled at this gateway."""

    status = 429
    kind = "rate_limit_error"
    code = "grammar_checks_busy"

    def __init__(self, waiting: int, retry_after_s: int) -> None:
        super().__init__(waiting, retry_after_s)
        self.waiting = waiting
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return (
            f"{self.waiting} new grammars wait to be checked at this gateway. "
            f"Try again in {self.retry_after_s} s."
        )
