"""Log probabilities are bounded: those of one request, and those that wait at a gateway."""

from __future__ import annotations

import os
import warnings
from typing import Any

import numpy as np
import pytest

os.environ.setdefault("VLLM_TARGET_DEVICE", "cpu")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from vllm.v1.engine import EngineCoreOutput
    from vllm.v1.outputs import LogprobsLists
    from vllm.v1.serial_utils import MsgpackEncoder

    from qwenfleet.deployments.vllm_adapter import model_client
    from qwenfleet.deployments.vllm_adapter.model_client import ModelClient

from qwenfleet.deployments.ingress.errors import TooManyRequests
from qwenfleet.deployments.ingress.field_errors import OutOfBounds
from qwenfleet.deployments.wire.frames import Output, Outputs
from tests.unit.deployments.vllm_adapter.test_model_client import (
    failure_of,
    key_of,
    link_to,
    next_output,
    request,
    send,
)


def with_logprobs(values: int) -> dict[str, Any]:
    """A token of an answer with this many log probabilities."""
    lists = LogprobsLists(np.ones((1, values)), np.zeros((1, values)), np.array([1]))
    whole = EngineCoreOutput("7@gw-a", [7], new_logprobs=lists)
    encoded = MsgpackEncoder(size_threshold=1 << 40).encode(whole)
    return {"token_ids": [7], "extra": bytes(encoded[0])}  # type: ignore[arg-type]


async def test_a_request_ends_at_its_limit_of_log_probabilities_and_no_other_does(
    client: ModelClient, serve_engine: Any, meet: Any, new_exchange: Any, gate: Any,
    observed_core: Any,
) -> None:  # fmt: skip
    client._logprob_values = 50
    dispatcher = client._dispatcher
    engine = await serve_engine(core=observed_core(sleep=gate))
    await meet(engine)
    exchanges = {name: new_exchange() for name in ("many", "few")}
    for name, exchange in exchanges.items():
        await send(client, request(name), exchange)
    keys = {name: key_of(client, name) for name in exchanges}
    link = link_to(client, engine)
    for name in ("many", "few", "many"):
        dispatcher.on_outputs(link, Outputs([Output(keys[name], **with_logprobs(26))]))
    failure = await failure_of(exchanges["many"])
    assert isinstance(failure, OutOfBounds)
    assert "52 values" in str(failure)
    assert "gateway.limits.logprob_values" in str(failure)
    assert list(dispatcher._flights) == ["few"]


async def test_log_probabilities_that_wait_are_bounded_and_plain_requests_go_on(
    client: ModelClient, serve_engine: Any, meet: Any, new_exchange: Any, gate: Any,
    observed_core: Any, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(model_client, "MAX_WAITING_VALUES", 50)
    engine = await serve_engine(core=observed_core(sleep=gate))
    await meet(engine)
    exchanges = {name: new_exchange() for name in ("first", "late", "plain")}
    for name, exchange in exchanges.items():
        await send(client, request(name), exchange)
    outputs = {"first": with_logprobs(30), "late": with_logprobs(30), "plain": {"token_ids": [8]}}
    for name, output in outputs.items():
        frame = Outputs([Output(key_of(client, name), **output)])
        client._dispatcher.on_outputs(link_to(client, engine), frame)
    failure = await failure_of(exchanges["late"])
    assert isinstance(failure, TooManyRequests)
    assert "30 log probabilities that wait to be sent" in str(failure)
    taken = [(await next_output(client)).request_id for _ in range(2)]
    assert taken == ["plain", "first"]
