"""Memory limits hold the open requests that the configuration allows."""

from __future__ import annotations

import pytest

from qwenfleet.cluster.config.fleet import GatewayConfig
from qwenfleet.cluster.config.grammar import GrammarConfig
from qwenfleet.cluster.local import request_memory
from qwenfleet.cluster.models import smollm2

pytestmark = pytest.mark.chart

QWEN3 = {
    "id": "coder",
    "source": "Qwen/Qwen3-Coder-480B-A35B-Instruct-FP8",
    "accelerator": "H100",
    "layout": {"tensor_parallel_size": 8, "expert_parallel": True},
}
SCRIPTED = {"id": "coder", "engine": "scripted"}
BODIES = GatewayConfig().admission.max_open_body_bytes
MIB = 2**20


def values(model, gateway_limit="64Gi", engine_limit="512Gi", **gateway):
    return {
        "fleet": {"models": [model], "gateway": gateway},
        "gateway": {"resources": {"limits": {"memory": gateway_limit}}},
        "engine": {"resources": {"limits": {"memory": engine_limit}}},
    }


@pytest.mark.parametrize(
    ("model", "gateway", "open_bytes", "requests", "context"),
    [
        (QWEN3, {}, BODIES, 1024, 262144),
        (QWEN3 | {"max_model_len": 4096}, {}, BODIES, 1024, 4096),
        (QWEN3, {"max_ongoing_requests": 10, "max_body_bytes": MIB}, 10 * MIB, 10, 262144),
        (SCRIPTED, {"max_ongoing_requests": 64}, BODIES, 64, None),
        (SCRIPTED | {"max_model_len": 2**20}, {"max_ongoing_requests": 4}, 128 * MIB, 4, 2**20),
        ({"id": smollm2.NAME}, {}, BODIES, 1024, smollm2.CONTEXT_TOKENS),
        (SCRIPTED, {"grammar": {"workers": 5, "max_compiled_mib": 64}}, BODIES, 1024, None),
    ],
)
def test_a_gateways_limit_follows_from_bodies_requests_and_context(
    render, refused, model, gateway, open_bytes, requests, context
):
    tokens = request_memory.most_tokens(open_bytes, requests, context)
    grammar = GrammarConfig(**gateway.get("grammar", {}))
    compiled_bytes = grammar.max_compiled_mib * MIB
    grammars = request_memory.grammar_bytes(1, grammar.workers, compiled_bytes)
    needed = request_memory.gateway_bytes(open_bytes, tokens, grammars)
    assert render(values(model, str(needed + MIB), **gateway))
    with pytest.raises(refused, match=f"gateway: open requests of {tokens} tokens"):
        render(values(model, str(needed - MIB), **gateway))


@pytest.mark.parametrize("gateways", [1, 3])
def test_an_engine_on_gpus_holds_the_requests_of_all_gateways(render, refused, gateways):
    tokens = gateways * request_memory.most_tokens(BODIES, 1024, 262144)
    needed = request_memory.engine_bytes(tokens)
    assert render(values(QWEN3, engine_limit=str(needed + MIB), replicas=gateways))
    with pytest.raises(refused, match=f"engine-0: open requests of {tokens} tokens"):
        render(values(QWEN3, engine_limit=str(needed - MIB), replicas=gateways))


def test_scripted_engines_and_pods_without_a_limit_are_not_checked(render):
    assert render(values(SCRIPTED, engine_limit="1Gi"))
    assert render(values(QWEN3, gateway_limit=None, engine_limit=None))
