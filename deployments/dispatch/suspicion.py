"""Suspicion: which request may have crashed its engine, and what follows. Pure.

A prompt can crash a core (a kernel assertion, memory) and would crash every engine that resumes it.
A core that dies inside a living host makes its whole batch suspects. Suspects run one at a time
until they produce a token, and the one on trial when the next core dies is not resumed again. A
host that vanishes (a killed process, a lost node) is not blamed on a prompt at first: its requests
move freely, and become suspects if it happens again before they produce a token. Each loss of an
engine that had the request counts, on trial or not; only the host itself can say that its core
never had it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final

MAX_CORE_DEATHS: Final = 4
"""A request that was running when this many cores died is convicted: one that crashes a core after
its first token would pass each trial. An innocent request would need four crashes by chance within
one answer."""
CLEAN_TOKENS: Final = 256
"""After this many tokens without a crash, a request's earlier crashes no longer count."""
MAX_UNPROVEN: Final = 3
"""Crashes in a row, without a token in between, that convict even if the whole host vanished."""
MAX_LOSSES: Final = 5
"""Losses in a row that convict a request which was never seen on trial. One that is harmful before
a core has it, such as one that its host cannot read, never gets there. An innocent request would
need five engines that vanish by chance while it waits for a token; those that a request takes down
after a first free loss are lost under it alone, because suspects are sent one at a time."""


class Verdict(Enum):
    """What happens next to a request whose engine crashed."""

    FREE = "free"
    TRIAL = "trial"
    CONVICTED = "convicted"


@dataclass
class Suspicion:
    """The evidence against one request."""

    core_deaths: int = 0
    """Core deaths since the request last made CLEAN_TOKENS without a crash."""
    clean_tokens: int = 0
    unproven: int = 0
    """Crashes since the request's last token."""
    is_suspect: bool = False
    is_on_trial: bool = False
    """True while it is the only suspect that its core runs."""

    def crashed(self, *, is_core_death: bool, was_alone: bool = True) -> Verdict:
        """Record a crash of this request's engine and judge. `is_core_death`: the host survived to
        report it. `was_alone`: the core had no other attempt without a token."""
        was_on_trial = self.is_on_trial
        if self.is_suspect and not was_on_trial and is_core_death:
            return Verdict.TRIAL  # its host, which lives, never gave it to that core
        self.is_on_trial = False
        self.unproven += 1
        self.core_deaths += is_core_death
        self.clean_tokens = 0
        if self.core_deaths >= MAX_CORE_DEATHS or self.unproven >= MAX_LOSSES:
            return Verdict.CONVICTED
        is_proof = is_core_death or self.unproven >= MAX_UNPROVEN
        if was_on_trial and was_alone and is_proof:
            return Verdict.CONVICTED
        self.is_suspect = self.is_suspect or is_core_death or self.unproven > 1
        return Verdict.TRIAL if self.is_suspect else Verdict.FREE

    def cleared(self, tokens: int = 1) -> None:
        """Record tokens from a living engine: the request is no longer a suspect."""
        self.unproven = 0
        self.is_suspect = False
        self.is_on_trial = False
        self.clean_tokens += tokens
        if self.clean_tokens >= CLEAN_TOKENS:
            self.core_deaths = 0
