"""TrialEngine: the one engine on which a gateway tries its suspects, one at a time. Pure."""

from __future__ import annotations

from collections.abc import Callable

from qwenfleet.deployments.dispatch.link import EngineLink


class TrialEngine:
    """`has_suspect` below says whether an engine has a suspect of this gateway now."""

    def __init__(self) -> None:
        self.link: EngineLink | None = None

    def lost(self, link: EngineLink) -> None:
        """Forget it if it is this one."""
        if self.link is link:
            self.link = None

    def for_others(
        self, usable: list[EngineLink], has_suspect: Callable[[EngineLink], bool]
    ) -> list[EngineLink]:
        """Engines for new requests, without the trial engine unless it is the only one: a new
        request that crashed it would convict an innocent suspect."""
        if self.link is None:
            return usable
        if not has_suspect(self.link):
            self.link = None
        return [link for link in usable if link is not self.link] or usable

    def for_suspect(
        self, usable: list[EngineLink], has_suspect: Callable[[EngineLink], bool]
    ) -> list[EngineLink]:
        """Engines for the next suspect; none while another one is on trial."""
        if self.link is None or self.link not in usable:
            self.link = None
            return usable
        return [] if has_suspect(self.link) else [self.link]
