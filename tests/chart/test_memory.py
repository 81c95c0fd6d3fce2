"""A CPU engine that its pod's memory limit cannot hold is refused, as the engine itself would."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from qwenfleet.cluster.errors import MachineError
from qwenfleet.cluster.local.memory import (
    LEAST_KV_GIB,
    RAY_BYTES,
    USUAL_KV_GIB,
    engine_bytes,
    kv_cache_bytes,
)
from qwenfleet.cluster.models import smollm2
from qwenfleet.cluster.units import GIB

pytestmark = pytest.mark.chart

CASES = Path(__file__).resolve().parents[2] / "helm" / "qwenfleet" / "ci"
SENTENCE = "but the memory limit of its container is"


def values(limit, **model):
    return {
        "fleet": {"models": [{"id": smollm2.NAME, **model}]},
        "engine": {"resources": {"limits": {"memory": limit}}},
    }


def engine_takes(limit_bytes, kv_cache_gib=None, ranks=1):
    try:
        kv_cache_bytes(kv_cache_gib, smollm2.WEIGHT_BYTES, ranks, limit_bytes)
    except MachineError:
        return False
    return True


@pytest.mark.parametrize("more", [-(2**20), 2**20])
@pytest.mark.parametrize("kv_cache_gib", [None, 0.1, 2.5])
@pytest.mark.parametrize("ranks", [1, 2])
def test_chart_and_engine_agree_on_the_limit(render, refused, more, kv_cache_gib, ranks):
    kv = LEAST_KV_GIB if kv_cache_gib is None else kv_cache_gib
    limit = engine_bytes(smollm2.WEIGHT_BYTES, kv, ranks) + RAY_BYTES + more
    assert engine_takes(limit, kv_cache_gib, ranks) == (more > 0)
    model = {} if kv_cache_gib is None else {"kv_cache_gib": kv_cache_gib}
    found = values(str(limit), layout={"tensor_parallel_size": ranks}, **model)
    if more > 0:
        assert render(found)
    else:
        with pytest.raises(refused, match=SENTENCE):
            render(found)


@pytest.mark.parametrize(
    "limit", ["2Gi", "2048Mi", "2e9", "2000M", 2000000000, "2000000000000m", "0.002T", "2097152Ki"]
)
def test_every_form_of_a_quantity_is_read(render, refused, limit):
    with pytest.raises(refused, match=SENTENCE):
        render(values(limit))


@pytest.mark.parametrize("limit", ["8Gi", "8192Mi", "8e9", "8000M", 8000000000, "0.008T"])
def test_every_form_of_a_large_quantity_is_read(render, limit):
    assert render(values(limit))


def test_what_is_not_a_quantity_is_refused(render, refused):
    with pytest.raises(refused, match="lots is not a quantity of memory"):
        render(values("lots"))


def test_a_group_s_own_limit_counts(render, refused):
    small = values("16Gi") | {"engines": {"engine-0": {"resources": {"limits": {"memory": "2Gi"}}}}}
    with pytest.raises(refused, match=f"engine-0: a CPU engine needs .* {SENTENCE} 2Gi"):
        render(small)


def test_scripted_engines_need_no_such_room(render):
    assert render(values("1Gi", engine="scripted"))


def test_without_a_limit_nothing_is_checked(render):
    tree = values("1Gi")
    tree["engine"]["resources"]["limits"] = {"memory": None}
    assert render(tree)


def test_the_values_for_kind_hold_an_engine_with_the_usual_cache(render):
    text = (CASES / "cpu-kind-values.yaml").read_text(encoding="utf-8")
    limit = yaml.safe_load(text)["engine"]["resources"]["limits"]["memory"]
    assert limit.endswith("Gi")
    found = kv_cache_bytes(None, smollm2.WEIGHT_BYTES, 1, int(limit[:-2]) * GIB)
    assert found == USUAL_KV_GIB * GIB
    assert render(None, "cpu-kind")
