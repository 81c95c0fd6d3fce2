"""The registry as engines, gateways and commands call it, over a registry without Ray."""

from __future__ import annotations

import asyncio
import logging
import threading
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import ray

from qwenfleet.cluster.errors import ProtocolError
from qwenfleet.deployments.registry import client as registry
from qwenfleet.deployments.registry import records
from qwenfleet.deployments.registry.actor import Registry, RegistryActor, ask
from qwenfleet.deployments.registry.client import RegistryClient, actor_name, legacy_name
from qwenfleet.deployments.registry.records import (
    VERSION,
    DrainOrder,
    EngineRecord,
    GatewayRecord,
    Orders,
    StartFailure,
)

ENGINE = EngineRecord("e1", "coder", "node-1", 7, "starting")
GATEWAY = GatewayRecord("g1", "node-1", 8, is_ready=False)


class Call:
    """A method of an actor's handle; its answer can be awaited, or is `ray.get`'s."""

    def __init__(self, actor: Actor) -> None:
        self._actor = actor

    def remote(self, data: bytes) -> Any:
        assert type(data) is bytes, "nothing of ours crosses by pickle"
        return Answer(self._actor, data)


class Answer:
    def __init__(self, actor: Actor, data: bytes) -> None:
        self._actor = actor
        self._data = data

    def get(self) -> bytes:
        if self._actor.failure is not None:
            raise self._actor.failure
        version, message = msgspec.msgpack.decode(self._data)
        answered = ask(self._actor.state, msgspec.msgpack.encode([version, message]))
        assert type(answered) is bytes
        _, answer = msgspec.msgpack.decode(answered)
        return msgspec.msgpack.encode([self._actor.version, answer])

    def __await__(self) -> Any:
        return self.get()
        yield


class Actor:
    """A fleet's registry, which may have another version."""

    def __init__(self) -> None:
        self.state = Registry()
        self.version = VERSION
        self.failure: Exception | None = None
        self.ask = Call(self)


@pytest.fixture
def actor(monkeypatch: pytest.MonkeyPatch) -> Actor:
    actor = Actor()
    monkeypatch.setattr(registry, "_actor", lambda fleet: actor)
    monkeypatch.setattr(registry, "_existing", lambda fleet: actor)
    monkeypatch.setattr(ray, "get", lambda answer, timeout: answer.get())
    return actor


@pytest.fixture
def problems(caplog: pytest.LogCaptureFixture) -> Any:
    caplog.set_level(logging.INFO, "qwenfleet.deployments.registry.client")
    return lambda: [record.getMessage() for record in caplog.records]


async def engines_by(client: RegistryClient) -> tuple[EngineRecord, ...]:
    """The engines that a gateway gets."""
    listing = await client.announce_gateway(GATEWAY)
    assert listing is not None
    return listing.engines


async def test_an_engine_and_a_gateway_announce_themselves(actor: Actor) -> None:
    client = RegistryClient("demo")
    assert await client.announce_engine(ENGINE, 8) == Orders(may_load=True)
    (listed,) = await engines_by(client)
    assert (listed.id, listed.is_loading) == ("e1", True)
    await client.report_failure(StartFailure("e1", "coder", "no memory", None))
    assert await engines_by(client) == ()
    await client.withdraw("g1")
    assert actor.state.snapshot().gateways == ()


async def test_an_unavailable_registry_is_retried_and_logged_once(
    actor: Actor, problems: Any
) -> None:
    client = RegistryClient("demo")
    actor.failure = ray.exceptions.ActorDiedError()
    for _ in range(3):
        assert await client.announce_gateway(GATEWAY) is None
    assert problems() == ["registry unavailable"]
    actor.failure = None
    await client.announce_engine(ENGINE, 8)
    assert len(await engines_by(client)) == 1
    assert problems() == ["registry unavailable", "registry available again"]


async def test_a_call_that_hangs_takes_one_thread_and_blocks_no_other_work(
    monkeypatch: pytest.MonkeyPatch, problems: Any
) -> None:
    """While the head of the cluster is lost, Ray's own calls do not return."""
    head_is_back = threading.Event()
    lookups: list[str] = []
    found = Actor()

    def look_up(fleet: str) -> Actor:
        lookups.append(fleet)
        head_is_back.wait()
        return found

    monkeypatch.setattr(registry, "_actor", look_up)
    monkeypatch.setattr(registry, "CALL_TIMEOUT_S", 0.01)
    client = RegistryClient("demo")
    for _ in range(100):
        assert await client.announce_gateway(GATEWAY) is None
    assert lookups == ["demo"]
    assert await asyncio.to_thread(lambda: "free") == "free"
    assert problems() == ["registry unavailable"]
    head_is_back.set()
    monkeypatch.setattr(registry, "CALL_TIMEOUT_S", 30.0)
    await client.announce_gateway(GATEWAY)
    assert [gateway.id for gateway in found.state.snapshot().gateways] == ["g1"]


@pytest.mark.parametrize("apart", [1, -1])
async def test_a_registry_one_version_apart_is_understood(actor: Actor, apart: int) -> None:
    actor.version = VERSION + apart
    assert (await RegistryClient("demo").announce_engine(ENGINE, 8)).may_load
    assert [engine.id for engine in registry.read("demo").engines] == ["e1"]


async def test_an_incompatible_registry_ends_neither_engines_nor_gateways(
    actor: Actor, problems: Any
) -> None:
    actor.version = VERSION + 2
    client = RegistryClient("demo")
    assert await client.announce_engine(ENGINE, 8) == Orders()
    assert await client.announce_gateway(GATEWAY) is None
    assert problems() == ["registry unavailable"]
    with pytest.raises(ProtocolError, match=f"version {VERSION + 2} cannot be read"):
        registry.read("demo")


async def test_an_incompatible_caller_is_refused_by_the_registry(
    actor: Actor, problems: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def newer(message: records.Message) -> bytes:
        _, tree = msgspec.msgpack.decode(encode(message))
        return msgspec.msgpack.encode([VERSION + 2, tree])

    encode = records.encode
    client = RegistryClient("demo")
    monkeypatch.setattr(registry, "records", SimpleNamespace(**{**vars(records), "encode": newer}))
    assert await client.announce_engine(ENGINE, 8) == Orders()
    assert problems() == ["refused a registry call", "registry unavailable"]
    assert f"messages of version {VERSION + 2} cannot be read" in str(caplog.records[-1].__dict__)
    assert actor.state.snapshot().engines == ()


async def test_commands_read_and_give_orders(actor: Actor) -> None:
    await RegistryClient("demo").announce_engine(ENGINE, 8)
    order = DrainOrder("an operator drains it", 60.0)
    registry.drain("demo", "e1", order)
    registry.close_node("demo", "node-1", 60.0)
    orders = await RegistryClient("demo").announce_engine(ENGINE, 8)
    assert orders == Orders(may_load=False, drain=order)


def test_a_command_does_not_find_the_registry_of_a_fleet_that_pickles(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Code that pickles and code that sends messages never call each other's actor."""

    def get_actor(name: str, namespace: str) -> Any:
        if name == legacy_name("demo"):
            return "the old one"
        raise ValueError(f"no actor is called {name}")

    killed: list[Any] = []
    monkeypatch.setattr(ray, "get_actor", get_actor)
    monkeypatch.setattr(ray, "kill", killed.append)
    with pytest.raises(ValueError, match=r"demo\.registry"):
        registry.read("demo")
    registry.end_legacy("demo")
    assert killed == ["the old one"]


def test_fleets_are_listed_by_their_registries_only(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [actor_name("demo"), legacy_name("old"), "SERVE_CONTROLLER_ACTOR"]
    actors = [{"name": name, "namespace": registry.NAMESPACE} for name in names]
    actors.append({"name": actor_name("other"), "namespace": "another"})
    monkeypatch.setattr(ray.util, "list_named_actors", lambda all_namespaces: actors)
    assert registry.fleets() == ["demo"]


def test_the_registry_runs_on_the_head_and_in_no_placement_group_of_its_creator() -> None:
    options = registry.options("demo")
    assert options["lifetime"] == "detached"
    assert options["num_cpus"] == 0, "a head of KubeRay offers no CPU"
    assert 0 < options["resources"]["node:__internal_head__"] < 0.01, "Serve needs some of it too"
    assert options["scheduling_strategy"] == "DEFAULT", "without one, Ray captures it"
    ray.remote(RegistryActor).options(**options)  # Ray knows all of them
