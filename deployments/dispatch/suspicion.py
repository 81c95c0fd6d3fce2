"""Suspicion: which request may have killed its engine, and what is done about it. Pure.

A prompt can kill a core (a kernel's assertion, memory) and would kill every engine that it is
resumed on. A core that dies inside a living host puts its whole batch under suspicion; suspects
run one at a time until they make a token, and the one that is on trial when the next core dies is
not resumed again. A host that vanishes (a killed process, a lost node) is no prompt's doing at
first: its requests go on freely, and come under suspicion when it happens again before they made a
token.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final

MAX_CORE_DEATHS: Final = 4
"""A request that was aboard when this many cores died has used up its trials: one that kills after
its first token would pass each of them. Chance needs four unlucky engines within one answer."""
CLEAN_TOKENS: Final = 256
"""A request that made this many without a crash owes its earlier ones to others."""
MAX_UNPROVEN: Final = 3
"""Crashes in a row, without a token between them, of which even silent ones convict."""


class Verdict(Enum):
    """What becomes of a request that was aboard a crashed engine."""

    FREE = "free"
    TRIAL = "trial"
    CONVICTED = "convicted"


@dataclass
class Suspicion:
    """What is held against one request."""

    core_deaths: int = 0
    """Since it last made CLEAN_TOKENS in peace."""
    clean_tokens: int = 0
    unproven: int = 0
    """Crashes since its last token."""
    is_suspect: bool = False
    is_on_trial: bool = False
    """Whether a core has it now, and no other suspect."""

    def crashed(self, *, is_core_death: bool, was_alone: bool = True) -> Verdict:
        """The engine that had this request crashed; `is_core_death` if its host lived to say so.
        `was_alone`: the core had no other attempt that it had made no token for."""
        was_on_trial = self.is_on_trial
        if self.is_suspect and not was_on_trial:
            return Verdict.TRIAL  # it still waited for its trial: that core never had it
        self.is_on_trial = False
        self.unproven += 1
        self.core_deaths += is_core_death
        self.clean_tokens = 0
        if self.core_deaths >= MAX_CORE_DEATHS:
            return Verdict.CONVICTED
        is_proof = is_core_death or self.unproven >= MAX_UNPROVEN
        if was_on_trial and was_alone and is_proof:
            return Verdict.CONVICTED
        self.is_suspect = self.is_suspect or is_core_death or self.unproven > 1
        return Verdict.TRIAL if self.is_suspect else Verdict.FREE

    def cleared(self, tokens: int = 1) -> None:
        """It made tokens and its engine lives."""
        self.unproven = 0
        self.is_suspect = False
        self.is_on_trial = False
        self.clean_tokens += tokens
        if self.clean_tokens >= CLEAN_TOKENS:
            self.core_deaths = 0
