"""Watches for signs that the Kubernetes nodes or pods of one engine are about to be removed.

Each engine watches its own pods and nodes, one object per watch. It needs no leader and no write
permission. It runs only in Kubernetes; `departure.py` has the decisions.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from threading import Thread
from typing import Any, Final

from qwenfleet.cluster.errors import KubernetesError
from qwenfleet.cluster.kube import client as kube
from qwenfleet.cluster.kube import departure
from qwenfleet.cluster.kube import objects as kube_objects
from qwenfleet.cluster.kube.client import Kube
from qwenfleet.cluster.kube.departure import DELETED_NODE_S, Departure
from qwenfleet.cluster.kube.objects import CLUSTER_LABEL
from qwenfleet.cluster.kube.query import Query
from qwenfleet.cluster.kube.watch import SILENCE_S, WATCH_S, Objects, Reflector

logger = logging.getLogger(__name__)

FIRST_LOOK_S: Final = 5.0
"""Seconds that a start waits to learn whether its nodes are closed, before it goes on anyway."""


@dataclass(frozen=True)
class Sign:
    """A departure, or a reason to start nothing, as read from a pod or node."""

    departure: Departure | None = None
    closed: str = ""
    """Reason that no engine should start there."""


@dataclass(frozen=True)
class Selected:
    """A `Source` of one query's objects."""

    client: Kube
    query: Query

    def list(self) -> tuple[list[dict[str, Any]], str]:
        return self.client.list(self.query)

    def watch(self, version: str) -> Iterator[dict[str, Any]]:
        return self.client.watch(self.query, version, lasts_s=WATCH_S, silence_s=SILENCE_S)


def pod_sign(objects: Objects, was_known: bool) -> Sign:
    """The sign of the pod at an address; pods that have ended may still be listed with it."""
    pods = [kube_objects.pod(tree) for tree in objects.values()]
    living = [pod for pod in pods if pod.phase not in {"Succeeded", "Failed"}]
    if not living:
        return Sign(Departure("its pod was deleted", DELETED_NODE_S)) if was_known else Sign()
    found = departure.of_pod(living[0])
    return Sign(found, found.reason if found else "")


def node_sign(objects: Objects, was_known: bool) -> Sign:
    nodes = [kube_objects.node(tree) for tree in objects.values()]
    if not nodes:
        return Sign(Departure("its node was deleted", DELETED_NODE_S)) if was_known else Sign()
    return Sign(departure.of_node(nodes[0]), departure.closed(nodes[0]))


class NodeWatch:
    """The pods and nodes of one engine. It belongs to the event loop that creates it, and reads the
    API server in threads that end with the process."""

    def __init__(self, client: Kube, addresses: Iterable[str]) -> None:
        self._client = client
        self._loop = asyncio.get_running_loop()
        self._signs: dict[tuple[str, str], Sign] = {}
        """Signs by kind and address, without those that are unknown."""
        self._known: set[tuple[str, str]] = set()
        """Kinds and addresses that were ever seen."""
        self._nodes: dict[str, str] = {}
        self._unseen = set(addresses)
        self._has_looked = asyncio.Event()
        self._has_news = asyncio.Event()
        self._leave: Callable[[Departure], None] | None = None
        self._reflectors: list[Reflector] = []
        for address in sorted(self._unseen):
            # by label too: all pods on the host's network share its address
            fields = f"status.podIP={address}"
            query = Query("pods", client.namespace, labels=CLUSTER_LABEL, fields=fields)
            self._follow("pod", address, query)

    @property
    def closed(self) -> str:
        """Reason that the engine should not start now; empty if it may, or if that is unknown."""
        return next((sign.closed for sign in self._signs.values() if sign.closed), "")

    async def may_start(self, report: Callable[[str], None]) -> None:
        """Wait until no node of the engine is closed; `report` gets the reason for waiting."""
        with suppress(TimeoutError):
            async with asyncio.timeout(FIRST_LOOK_S):
                await self._has_looked.wait()
        while closed := self.closed:
            logger.info("engine start delayed", extra={"reason": closed})
            report(closed)
            self._has_news.clear()
            await self._has_news.wait()

    def on_departure(self, leave: Callable[[Departure], None]) -> None:
        """Call `leave` once for each departure from now on, and for those already known."""
        self._leave = leave
        for sign in list(self._signs.values()):
            self._order(sign)

    def close(self) -> None:
        """Stop watching; each thread ends with its current watch."""
        for reflector in self._reflectors:
            reflector.is_stopped = True

    def _follow(self, kind: str, address: str, query: Query) -> None:
        reflector = Reflector(
            what=f"{kind} {query.fields}",
            source=Selected(self._client, query),
            see=partial(self._hear, kind, address),
        )
        self._reflectors.append(reflector)
        Thread(target=reflector.run, name=f"watch-{kind}-{address}", daemon=True).start()

    def _hear(self, kind: str, address: str, objects: Objects | None) -> None:
        """Hand objects to the event loop; runs in a reflector's thread."""
        with suppress(RuntimeError):  # the loop has ended: the process is exiting
            self._loop.call_soon_threadsafe(self._see, kind, address, objects)

    def _see(self, kind: str, address: str, objects: Objects | None) -> None:
        key = (kind, address)
        if objects is None:  # unknown: no reason to delay a start
            self._signs.pop(key, None)
        else:
            judge = pod_sign if kind == "pod" else node_sign
            sign = judge(objects, key in self._known)
            if objects:
                self._known.add(key)
            before = self._signs.get(key)
            self._signs[key] = sign
            if before is None or before.departure != sign.departure:  # order each only once
                self._order(sign)
            if kind == "pod":
                self._find_node(address, objects)
            else:
                self._seen(address)
        self._has_news.set()

    def _find_node(self, address: str, objects: Objects) -> None:
        names = {kube_objects.pod(tree).node for tree in objects.values()} - {""}
        if not names:
            logger.warning("no pod found with this address", extra={"address": address})
            self._seen(address)
        elif address not in self._nodes:
            name = self._nodes[address] = names.pop()
            self._follow("node", address, Query("nodes", fields=f"metadata.name={name}"))

    def _seen(self, address: str) -> None:
        self._unseen.discard(address)
        if not self._unseen:
            self._has_looked.set()

    def _order(self, sign: Sign) -> None:
        if self._leave is not None and sign.departure is not None:
            self._leave(sign.departure)


async def start(addresses: Iterable[str]) -> NodeWatch | None:
    """Watch the pods at these addresses and their nodes. None outside Kubernetes, or if the
    service account does not work, which is logged."""
    if not kube.is_in_pod():
        return None
    try:
        client = await asyncio.to_thread(kube.connect)
    except KubernetesError as error:
        logger.warning("kubernetes nodes not watched", extra={"reason": str(error)})
        return None
    return NodeWatch(client, addresses)
