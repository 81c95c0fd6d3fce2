"""Fixtures: model clients over hosts on loopback."""

from __future__ import annotations

import asyncio
import logging
import os
import time
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, cast

import pytest
import pytest_asyncio

os.environ.setdefault("VLLM_TARGET_DEVICE", "cpu")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from qwenfleet.deployments.vllm_adapter.model_client import ModelClient

from qwenfleet.cluster.config.fleet import WireConfig
from qwenfleet.deployments.dispatch.dispatcher import Dispatcher
from qwenfleet.deployments.ingress.answers import Family
from qwenfleet.deployments.ingress.exchange import Exchange
from tests.unit.deployments.vllm_adapter.site import Sites


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """vLLM and what it imports set the root logger's level and the factory of log records."""
    level, factory = logging.root.level, logging.getLogRecordFactory()
    yield
    logging.root.setLevel(level)
    logging.setLogRecordFactory(factory)


@pytest_asyncio.fixture
async def new_client(wire: WireConfig, metrics: Any) -> AsyncIterator[Callable[..., ModelClient]]:
    clients: list[ModelClient] = []

    def new(**fields: Any) -> ModelClient:
        settings: dict[str, Any] = {"gateway": "gw-a", "wire": wire, "retry_after_s": 5}
        dispatcher = Dispatcher("coder", **(settings | {"metrics": metrics} | fields))
        clients.append(ModelClient(dispatcher, fields.get("clock", time.monotonic)))
        return clients[-1]

    yield new
    for client in clients:
        tasks = list(client._dispatcher._roster._tasks.values())
        client.shutdown()
        await asyncio.gather(*tasks, return_exceptions=True)


@pytest.fixture
def client(new_client: Any) -> ModelClient:
    return cast(ModelClient, new_client())


@pytest.fixture
def meet(client: ModelClient, eventually: Any) -> Callable[..., Any]:
    """Connect the client to engines."""

    def is_open(engine: Any) -> bool:
        return (
            link := client._dispatcher._roster._links.get(engine.record.id)
        ) is not None and link.is_open

    async def meet(*engines: Any) -> None:
        client._dispatcher.update([engine.record for engine in engines])
        await eventually(lambda: all(is_open(engine) for engine in engines))

    return meet


@pytest.fixture
def new_exchange(metrics: Any) -> Callable[[], Exchange]:
    return lambda: Exchange(
        model="coder", family=Family.OPENAI, timeout_s=60, keep_alive_s=15, metrics=metrics
    )


@pytest_asyncio.fixture
async def build(
    wire: WireConfig, metrics: Any, eventually: Any
) -> AsyncIterator[Callable[..., Any]]:
    """Return a function that builds vLLM's front end for engines, with engine_args."""
    sites = Sites(wire, metrics, eventually)
    yield sites.build
    await sites.close()
