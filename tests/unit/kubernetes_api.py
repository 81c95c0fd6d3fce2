"""A small Kubernetes API server on loopback: list, get, merge-patch, watch and exec over real HTTP.

It has the difficult cases: resourceVersions, bookmarks, 410 Gone after a compaction, RBAC's 403, a
resource that is not installed, and connections that are cut or go silent.
"""

from __future__ import annotations

import asyncio
import copy
import json
import threading
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

Tree = dict[str, Any]
NAMESPACED = {"pods", "events", "rayservices"}


@dataclass
class Change:
    version: int
    resource: str
    type: str
    tree: Tree


@dataclass
class Exec:
    """What a command in a pod says, and how it ends."""

    output: list[str] = field(default_factory=list)
    exit_status: int = 0
    lasts_s: float = 0.0
    breaks: bool = False
    """Ends without a word, and without a status."""
    calls: list[tuple[str, list[str]]] = field(default_factory=list)
    """Pods, and the commands that ran in them."""


class KubernetesApi:
    """`objects` are changed by `put` and `delete`; the other fields by tests as they like."""

    def __init__(self) -> None:
        self.denied: set[tuple[str, str]] = set()
        """Verbs and resources."""
        self.denied_everywhere: set[str] = set()
        """Resources that may be listed in a namespace only."""
        self.absent: set[str] = set()
        """Resources that are not installed."""
        self.token = "secret"
        self.nonsense = ""
        """What is answered in place of JSON."""
        self.is_frozen = False
        """Accepts connections, and says nothing."""
        self.has_bookmarks = True
        self.exec = Exec()
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        """Verb, path and query of each."""
        self._objects: dict[tuple[str, str, str], Tree] = {}
        self._history: list[Change] = []
        self._version = 100
        self._oldest = 100
        """The oldest version that a watch may begin at."""
        self._watches: set[asyncio.Task[Any]] = set()
        self._loop = asyncio.new_event_loop()
        self._changed = asyncio.Event()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._runner: web.AppRunner | None = None
        self.url = self._do(self._serve())

    def close(self) -> None:
        self._do(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def put(self, resource: str, tree: Tree) -> None:
        """Create or replace."""
        self._do(self._put(resource, copy.deepcopy(tree)))

    def delete(self, resource: str, name: str, namespace: str = "") -> None:
        self._do(self._delete(resource, namespace, name))

    def get(self, resource: str, name: str, namespace: str = "") -> Tree:
        return self._objects[resource, namespace, name]

    def bookmark(self) -> None:
        """Tell each watch of a version at which nothing of it changed."""
        self._do(self._bookmark())

    def compact(self) -> None:
        """Drop the history: a watch from an earlier version gets 410."""
        self._version += 1
        self._oldest = self._version

    def cut(self) -> None:
        """Break each watch's connection."""
        self._do(self._cut())

    def verbs(self, resource: str) -> list[str]:
        """What was asked of a resource, in order."""
        return [verb for verb, path, _ in self.requests if path.split("/")[-1] == resource]

    def watches(self) -> int:
        return len(self._watches)

    def _do(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _serve(self) -> str:
        app = web.Application()
        app.router.add_route("*", "/{group:api/v1|apis/ray.io/v1}/{rest:.*}", self._answer)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        return f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def _stop(self) -> None:
        await self._cut()
        assert self._runner is not None
        await self._runner.cleanup()

    async def _put(self, resource: str, tree: Tree) -> None:
        self._version += 1
        metadata = tree["metadata"]
        if resource in NAMESPACED:
            metadata.setdefault("namespace", "fleet")
        metadata["resourceVersion"] = str(self._version)
        key = (resource, metadata.get("namespace", ""), metadata["name"])
        kind = "MODIFIED" if key in self._objects else "ADDED"
        self._objects[key] = tree
        self._tell(resource, kind, tree)

    async def _delete(self, resource: str, namespace: str, name: str) -> None:
        self._version += 1
        tree = copy.deepcopy(self._objects.pop((resource, namespace, name)))
        tree["metadata"]["resourceVersion"] = str(self._version)
        self._tell(resource, "DELETED", tree)

    def _tell(self, resource: str, kind: str, tree: Tree) -> None:
        self._history.append(Change(self._version, resource, kind, copy.deepcopy(tree)))
        self._changed.set()
        self._changed = asyncio.Event()

    async def _bookmark(self) -> None:
        self._version += 1
        for resource in ("nodes", "pods"):
            tree = {"kind": "Bookmark", "metadata": {"resourceVersion": str(self._version)}}
            self._tell(resource, "BOOKMARK", tree)

    async def _cut(self) -> None:
        """Streams that are waited for end with a reset."""
        for watch in list(self._watches):
            watch.cancel()
        await asyncio.sleep(0)

    # HTTP.

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        parts = request.match_info["rest"].split("/")
        namespace = parts[1] if parts[0] == "namespaces" else ""
        resource, *names = parts[2:] if namespace else parts
        verb = {"GET": "get" if names else "list", "PATCH": "patch"}[request.method]
        if names[1:] == ["exec"]:
            resource, verb = "pods/exec", "create"
        elif "watch" in request.query:
            verb = "watch"
        self.requests.append((verb, request.path, dict(request.query)))
        while self.is_frozen:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        if request.headers.get("Authorization") != f"Bearer {self.token}":
            return _status(401, "Unauthorized", "Unauthorized")
        if self.nonsense:
            return web.Response(text=self.nonsense)
        if resource in self.absent:
            return web.Response(status=404, text="404 page not found")
        is_everywhere = not namespace and resource in self.denied_everywhere
        if (verb, resource) in self.denied or is_everywhere:
            reported = f'{resource} is forbidden: User "me" cannot {verb} resource "{resource}"'
            return _status(403, "Forbidden", reported)
        if verb == "create":
            return await self._exec(request, names[0])
        if verb in ("get", "patch"):
            return await self._one(request, (resource, namespace, names[0]))
        chooses = _selector(request, namespace)
        if verb == "watch":
            return await self._watch(request, resource, chooses)
        items = [tree for key, tree in self._objects.items() if key[0] == resource]
        return web.json_response(
            {
                "metadata": {"resourceVersion": str(self._version)},
                "items": [tree for tree in items if chooses(tree)],
            }
        )

    async def _one(self, request: web.Request, key: tuple[str, str, str]) -> web.Response:
        tree = self._objects.get(key)
        if tree is None:
            return _status(404, "NotFound", f'{key[0]} "{key[2]}" not found')
        if request.method == "PATCH":
            assert request.content_type == "application/merge-patch+json"
            tree = copy.deepcopy(tree)
            _merge(tree, await request.json())
            if "dryRun" not in request.query:
                await self._put(key[0], tree)
        return web.json_response(tree)

    async def _watch(
        self, request: web.Request, resource: str, chooses: Callable[[Tree], bool]
    ) -> web.StreamResponse:
        seen = int(request.query["resourceVersion"])
        if seen < self._oldest:
            return _status(410, "Expired", f"too old resource version: {seen}")
        response = web.StreamResponse()
        await response.prepare(request)
        task = asyncio.current_task()
        assert task is not None
        self._watches.add(task)
        try:
            async with asyncio.timeout(float(request.query["timeoutSeconds"])):
                while True:
                    changed = self._changed
                    for change in [c for c in self._history if c.version > seen]:
                        seen = change.version
                        is_bookmark = change.type == "BOOKMARK"
                        if change.resource != resource or not (
                            self.has_bookmarks if is_bookmark else chooses(change.tree)
                        ):
                            continue
                        event = {"type": change.type, "object": change.tree}
                        while self.is_frozen:  # noqa: ASYNC110
                            await asyncio.sleep(0.02)
                        await response.write(json.dumps(event).encode() + b"\n")
                    await changed.wait()
        except TimeoutError:
            return response
        except asyncio.CancelledError:
            if request.transport is not None:
                request.transport.abort()
            raise
        finally:
            self._watches.discard(task)

    async def _exec(self, request: web.Request, pod: str) -> web.StreamResponse:
        socket = web.WebSocketResponse(protocols=["v4.channel.k8s.io"])
        await socket.prepare(request)
        self.exec.calls.append((pod, request.query.getall("command")))
        for text in self.exec.output:
            await socket.send_bytes(b"\x01" + text.encode())
        await asyncio.sleep(self.exec.lasts_s)
        if self.exec.breaks:
            assert request.transport is not None
            request.transport.abort()
            return socket
        end: Tree = {"status": "Success"}
        if self.exec.exit_status:
            causes = [{"reason": "ExitCode", "message": str(self.exec.exit_status)}]
            end = {"status": "Failure", "details": {"causes": causes}}
        await socket.send_bytes(b"\x03" + json.dumps(end).encode())
        await socket.close()
        return socket


def _status(code: int, reason: str, message: str) -> web.Response:
    tree = {"kind": "Status", "status": "Failure", "code": code}
    return web.json_response(tree | {"reason": reason, "message": message}, status=code)


def _selector(request: web.Request, namespace: str) -> Callable[[Tree], bool]:
    fields = request.query.get("fieldSelector", "")
    labels = request.query.get("labelSelector", "")

    def chooses(tree: Tree) -> bool:
        if namespace and tree["metadata"].get("namespace") != namespace:
            return False
        path, _, wanted = fields.partition("=")
        value: Any = tree
        for key in path.split(".") if path else ():
            value = value.get(key, {})
        if path and value != wanted:
            return False
        return not labels or labels in tree["metadata"].get("labels", {})

    return chooses


def _merge(tree: Tree, patch: Tree) -> None:
    """RFC 7396."""
    for key, value in patch.items():
        if isinstance(value, dict) and isinstance(tree.get(key), dict):
            _merge(tree[key], value)
        elif value is None:
            tree.pop(key, None)
        else:
            tree[key] = value
