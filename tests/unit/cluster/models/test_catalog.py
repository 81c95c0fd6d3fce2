from __future__ import annotations

import json
from pathlib import Path

import pytest

from qwenfleet.cluster.models.cards import NO_DEFAULTS, defaults_for
from qwenfleet.cluster.models.catalog import CATALOG, find_model, find_published
from qwenfleet.cluster.models.tiny_qwen3_moe import CONFIG
from qwenfleet.cluster.plan_errors import PlanError


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("Qwen/Qwen3-Coder-480B-A35B-Instruct-FP8", "Qwen/Qwen3-Coder-480B-A35B-Instruct-FP8"),
        ("Qwen3-Coder-480B-A35B-Instruct", "Qwen/Qwen3-Coder-480B-A35B-Instruct"),
        ("qwen3-coder-480b-fp8", "Qwen/Qwen3-Coder-480B-A35B-Instruct-FP8"),
        ("QWEN3-CODER-480B", "Qwen/Qwen3-Coder-480B-A35B-Instruct"),
        ("qwen3-coder-30b", "Qwen/Qwen3-Coder-30B-A3B-Instruct"),
        ("qwen3-30b-2507-fp8", "Qwen/Qwen3-30B-A3B-Instruct-2507-FP8"),
        ("qwen3-coder-480b-nvfp4", "nvidia/Qwen3-Coder-480B-A35B-Instruct-NVFP4"),
    ],
)
def test_a_model_is_found_by_its_id_its_last_part_and_its_short_name(name: str, model: str) -> None:
    assert find_model(name).name == model


def test_each_model_of_the_catalog_has_a_source_and_the_defaults_of_its_card() -> None:
    assert len(CATALOG) == 7
    for model in CATALOG:
        assert "config.json" in model.source
        assert defaults_for(model.name) is not NO_DEFAULTS


def test_nvidias_nvfp4_model_has_a_doubt_about_its_config() -> None:
    """The recipe of vllm-project/recipes (2026-04-17) asks for 288 GB at least."""
    found = find_model("nvidia/Qwen3-Coder-480B-A35B-Instruct-NVFP4")
    assert 240e9 < found.geometry.weight_bytes < 288e9
    (doubt,) = found.doubts
    assert "config.json was not seen" in doubt


def test_an_unknown_name_is_refused_with_the_nearest_and_all_names() -> None:
    with pytest.raises(PlanError) as caught:
        find_model("qwen3-code-480b-fp8")
    assert "Did you mean Qwen/Qwen3-Coder-480B-A35B-Instruct-FP8" in str(caught.value)
    assert "qwen3-30b-2507-fp8" in str(caught.value)


def test_a_name_that_resembles_none_is_refused_with_the_list() -> None:
    with pytest.raises(PlanError) as caught:
        find_model("zzz")
    assert "Did you mean" not in str(caught.value)


def test_a_directory_is_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    found = find_model(str(tmp_path))
    assert (found.geometry.num_experts, found.name) == (8, str(tmp_path))


def test_a_directory_with_the_name_of_another_model_is_refused_with_both_values(
    tmp_path: Path,
) -> None:
    """The check prevents loading 480 GB into the wrong layout."""
    directory = tmp_path / "Qwen3-Coder-480B-A35B-Instruct-FP8"
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(CONFIG))
    with pytest.raises(PlanError, match=r"says num_layers 2, but Qwen/.*-FP8 has 62"):
        find_model(str(directory))


def named_like(tmp_path: Path, name: str, **changes: object) -> str:
    """A directory with Coder-30B's config.json, changed."""
    geometry = CATALOG[2].geometry
    config = {
        "architectures": [geometry.architecture],
        "hidden_size": geometry.hidden_size,
        "intermediate_size": geometry.intermediate_size,
        "moe_intermediate_size": geometry.moe_intermediate_size,
        "num_hidden_layers": geometry.num_layers,
        "num_attention_heads": geometry.num_heads,
        "num_key_value_heads": geometry.num_kv_heads,
        "head_dim": geometry.head_dim,
        "num_experts": geometry.num_experts,
        "num_experts_per_tok": geometry.experts_per_token,
        "vocab_size": geometry.vocab_size,
        "rope_theta": geometry.rope_theta,
        "max_position_embeddings": geometry.max_position_embeddings,
    }
    directory = tmp_path / name
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(config | changes))
    return str(directory)


CODER, INSTRUCT = "Qwen3-Coder-30B-A3B-Instruct", "Qwen3-30B-A3B-Instruct-2507"


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        (CODER, {}),
        (CODER, {"intermediate_size": 1}),  # of dense layers, which the model does not have
        (INSTRUCT, {"rope_theta": 1e6}),  # the catalog's own figure is in doubt
        (CODER, {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}),
        (CODER, {"max_position_embeddings": 10**6, "dual_chunk_attention_config": {"a": 1}}),
    ],
)
def test_a_directory_may_differ_where_the_catalog_allows_it(
    tmp_path: Path, name: str, changes: dict[str, object]
) -> None:
    assert find_model(named_like(tmp_path, name, **changes)).geometry.num_layers == 48


@pytest.mark.parametrize(
    "changes", [{"rope_theta": 1e6}, {"max_position_embeddings": 10**6}, {"num_experts": 64}]
)
def test_a_directory_may_not_differ_elsewhere(tmp_path: Path, changes: dict[str, object]) -> None:
    (name,) = changes
    with pytest.raises(PlanError, match=f"says {name} "):
        find_model(named_like(tmp_path, CODER, **changes))


def test_dual_chunk_attention_is_listed_as_a_doubt(tmp_path: Path) -> None:
    config = {"dual_chunk_attention_config": {"chunk_size": 131_072}}
    found = find_model(named_like(tmp_path, "long", max_position_embeddings=1_010_000, **config))
    assert found.geometry.max_context_tokens == 1_010_000
    assert "dual chunk attention" in found.doubts[0]


def test_a_copy_under_another_owner_keeps_its_name_and_has_a_doubt() -> None:
    found = find_model("acme/Qwen3-Coder-30B-A3B-Instruct")
    assert (found.name, found.geometry) == (
        "acme/Qwen3-Coder-30B-A3B-Instruct",
        CATALOG[2].geometry,
    )
    assert "from its name to be those of Qwen/Qwen3-Coder-30B-A3B-Instruct" in found.doubts[-1]


def test_find_published_knows_only_the_catalog() -> None:
    assert find_published("meta/llama") is None
    assert find_published("/models/Qwen3-Coder-30B-A3B-Instruct/") is CATALOG[2]
