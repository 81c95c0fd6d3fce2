"""Reflector for objects of a Kubernetes API server: list, watch, and resume after a failure.

A watch that ends resumes at the last resourceVersion that it received. It starts again with a list
if the server has dropped that version (410 Gone), if nothing arrived for SILENCE_S although the
server should have sent a bookmark, and after RELIST_S in any case.

The official client has an informer, `kubernetes.informer.SharedInformer`. It is not used for two
reasons (kubernetes 37.0, informer.py `_run_loop`): it reopens a failed watch without a pause, so
all engines of a fleet would hammer an API server that refuses them; and it reads without a timeout,
so it would wait forever on a connection that a load balancer silently dropped.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from qwenfleet.cluster.errors import KubernetesError

logger = logging.getLogger(__name__)

SILENCE_S: Final = 150.0
"""Silence after which a watch counts as lost. API servers send a bookmark about every minute:
k8s.io/apiserver, storage/cacher/cacher.go, `defaultBookmarkFrequency`."""
WATCH_S: Final = 290.0
"""Requested length of a watch; the server itself closes one after five to ten minutes."""
RELIST_S: Final = 900.0
STALE_S: Final = 2 * SILENCE_S
"""Time without confirmation after which objects count as unknown."""
BACKOFF_S: Final = (1.0, 2.0, 5.0, 10.0, 30.0)
REFUSED_S: Final = 60.0
"""Seconds between two attempts if the API server refuses."""

Objects = dict[str, dict[str, Any]]


class Source(Protocol):
    """Objects of a server. Both methods raise KubernetesError."""

    def list(self) -> tuple[list[dict[str, Any]], str]:
        """Objects, and their resourceVersion."""

    def watch(self, version: str) -> Iterator[dict[str, Any]]:
        """Events after a resourceVersion."""


@dataclass
class Reflector:
    """Follows one source in its own thread.

    `see` is called with all objects by name after each change, and with None when they become
    unknown. `clock` returns monotonic seconds.
    """

    what: str
    source: Source
    see: Callable[[Objects | None], None]
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    is_stopped: bool = False
    _objects: Objects = field(default_factory=dict)
    _version: str = ""
    """Empty if the next step is to list."""
    _listed_at: float = 0.0
    _heard_at: float = 0.0
    _is_known: bool = False
    _failures: int = 0

    def run(self) -> None:
        while not self.is_stopped:
            try:
                self.step()
            except Exception:  # edge of the thread: an unexpected object
                logger.exception("kubernetes watch failed", extra={"what": self.what})
                self._version = ""
                self.sleep(REFUSED_S)

    def step(self) -> None:
        """List or watch once, and wait after a failure."""
        began_at = self.clock()
        try:
            if (
                not self._version
                or began_at - self._listed_at > RELIST_S
                or began_at - self._heard_at >= SILENCE_S
            ):
                self._list()
            else:
                self._watch()
                self._pace(began_at)
        except KubernetesError as error:
            if error.api_status == 410 and self._version:  # normal: list again soon
                logger.info("kubernetes watch expired", extra={"what": self.what})
                self._version = ""
                self._pace(self._listed_at)
            else:
                self._fail(error)

    def _pace(self, began_at: float) -> None:
        """Ask at most once a second if the server ends each watch at once."""
        if self.clock() - began_at < BACKOFF_S[0]:
            self.sleep(BACKOFF_S[0])

    def _list(self) -> None:
        items, self._version = self.source.list()
        self._objects = {tree["metadata"]["name"]: tree for tree in items}
        self._listed_at = self.clock()
        self._hear()
        self._notify()

    def _watch(self) -> None:
        for event in self.source.watch(self._version):
            self._hear()
            tree = event["object"]
            self._version = str(tree["metadata"]["resourceVersion"])
            if event["type"] != "BOOKMARK":
                name = tree["metadata"]["name"]
                self._objects.pop(name, None)
                if event["type"] != "DELETED":
                    self._objects[name] = tree
                self._notify()
            if self.is_stopped or self.clock() - self._listed_at > RELIST_S:
                return

    def _hear(self) -> None:
        if self._failures:
            logger.info("kubernetes watch recovered", extra={"what": self.what})
        self._heard_at = self.clock()
        self._failures = 0

    def _notify(self) -> None:
        self._is_known = True
        self.see(dict(self._objects))

    def _fail(self, error: KubernetesError) -> None:
        if self._is_known and self.clock() - self._heard_at > STALE_S:
            logger.warning("kubernetes objects unknown", extra={"what": self.what})
            self._is_known = False
            self.see(None)
        if not self._failures:
            logger.warning("kubernetes watch lost", extra={"what": self.what, "reason": str(error)})
        is_refusal = error.api_status in (401, 403, 404)
        self.sleep(REFUSED_S if is_refusal else BACKOFF_S[min(self._failures, len(BACKOFF_S) - 1)])
        self._failures += 1
