"""Tests what a gateway reads from Serve's replica and takes from Ray's worker, whose names the
installed Ray must have."""

from __future__ import annotations

import asyncio
import inspect
import signal
from types import SimpleNamespace
from typing import Any

import pytest
import ray._private.worker as ray_worker
from ray.serve._private import replica as serve_replica

from qwenfleet.deployments import replica


def test_replica_knows_that_serve_stops_it(monkeypatch: pytest.MonkeyPatch) -> None:
    impl = SimpleNamespace(_shutting_down=False)
    actors = {"a": object(), "b": SimpleNamespace(_replica_impl=impl)}
    monkeypatch.setattr(ray_worker.global_worker, "actors", actors)
    assert not replica.is_stopping()
    impl._shutting_down = True
    assert replica.is_stopping()


def test_installed_ray_has_the_names_that_we_read() -> None:
    # Real streams cross a real stop and a real SIGTERM in tests/loss/test_gateways.py.
    source = inspect.getsource(serve_replica)
    assert "self._shutting_down = True" in source
    assert "self._replica_impl" in source
    assert "raise_sys_exit_with_custom_error_message(" in inspect.getsource(
        ray_worker.Worker.main_loop
    )


async def test_sigterm_of_a_worker_calls_back_and_ends_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name = "raise_sys_exit_with_custom_error_message"
    monkeypatch.setattr(ray_worker, name, getattr(ray_worker, name))  # is put back afterwards
    handlers: list[Any] = []
    monkeypatch.setattr("ray._private.utils.set_sigterm_handler", handlers.append)
    core = SimpleNamespace(run_task_loop=lambda: handlers[0](signal.SIGTERM, None))
    left = asyncio.Event()
    replica.on_sigterm(asyncio.get_running_loop(), left.set)
    with pytest.raises(SystemExit):  # the loop of tasks has ended; the signal ended nothing
        ray_worker.Worker.main_loop(SimpleNamespace(core_worker=core))  # type: ignore[arg-type]
    await asyncio.wait_for(left.wait(), 10)
