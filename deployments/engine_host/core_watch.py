"""CoreWatch: looks at a core's pulse at each heartbeat, and gives up a core that stays ill."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from qwenfleet.deployments.engine_host.core import Core, CoreFrozen
from qwenfleet.deployments.engine_host.pulse import Pulse
from qwenfleet.deployments.wire.liveness import Condition

logger = logging.getLogger(__name__)

GIVE_UP_S: Final = 120.0
"""A core that stays frozen for this long is replaced: a stopped process would have been continued
by then. So is one that compiles no grammar for this long."""


async def check(
    core: Core, pulse: Pulse, engine: str, now: float, *, has_work: bool, late_s: float
) -> None:
    """Judge the core, whose step is late after `late_s` seconds. Raises CoreFrozen for one that has
    been stuck for too long, and for one whose grammars are."""
    before = pulse.condition
    # Reading CPU use scans all of /proc: only if the core is late.
    is_late = has_work and pulse.age_s(now) > late_s
    cpu_s = await asyncio.to_thread(core.cpu_s) if is_late else None
    pulse.note_compiles(core.compiles(), now)
    condition = pulse.look(now, has_work=has_work, cpu_s=cpu_s)
    if condition is not before:
        extra = {"engine": engine, "condition": condition.value, "reason": pulse.reason}
        logger.warning("core health changed", extra=extra)
    if condition is Condition.FROZEN:
        if before is not Condition.FROZEN:
            await core.probe()  # its step will show that the core recovered
        if pulse.age_s(now) > GIVE_UP_S:
            raise CoreFrozen(pulse.reason)
    if pulse.compiles_late_s(now) > GIVE_UP_S:
        raise CoreFrozen(pulse.reason)
