import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from qwenfleet.cluster.config import vllm_arguments
from qwenfleet.cluster.config.fleet import (
    FleetConfig,
    GatewayConfig,
    TracingConfig,
    WireConfig,
    dump,
)
from qwenfleet.cluster.config.model import (
    ModelConfig,
    Pool,
    Replicas,
    ScriptConfig,
)
from qwenfleet.cluster.config.section import Section
from qwenfleet.cluster.config.tls import TlsConfig


def rule_of(error: ValidationError) -> tuple[str, str]:
    context = error.errors()[0]["ctx"]
    return context["problem"], context["remedy"]


CHART = "qwenfleet.cluster.chart.values"
"""The comments of values.yaml describe its fields."""


def sections(root: type[Section] = Section) -> list[type[Section]]:
    below = [child for child in root.__subclasses__() if child.__module__ != CHART]
    return [*below, *(section for child in below for section in sections(child))]


def test_the_default_fleet_runs_the_embedded_model_twice() -> None:
    (model,) = FleetConfig().models
    assert (model.id, model.replicas) == ("smollm2-135m-instruct", Replicas(min=2, max=2))


@pytest.mark.parametrize("section", sections(), ids=lambda section: section.__name__)
def test_every_field_has_a_description(section: type[Section]) -> None:
    assert all(field.description for field in section.model_fields.values())


@pytest.mark.parametrize("section", sections(), ids=lambda section: section.__name__)
def test_only_names_and_the_files_of_tls_have_no_default(section: type[Section]) -> None:
    required = {name for name, field in section.model_fields.items() if field.is_required()}
    files = {"certificate", "key", "authority"}
    assert required == {ModelConfig: {"id"}, Pool: {"name"}, TlsConfig: files}.get(section, set())


@pytest.mark.parametrize("section", sections(), ids=lambda section: section.__name__)
def test_every_time_and_size_has_its_unit_in_its_description(section: type[Section]) -> None:
    units = {"_bytes": "bytes", "_gib": "GiB", "_s": "second", "_tokens": "tokens"}
    for name, field in section.model_fields.items():
        for suffix, unit in units.items():
            if name.endswith(suffix):
                assert unit in (field.description or ""), name


def test_the_tree_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        FleetConfig().name = "other"  # type: ignore[misc]  # what the test is about


def test_a_models_source_defaults_to_its_id() -> None:
    assert ModelConfig(id="a").resolved_source == "a"
    assert ModelConfig(id="a", source="acme/b").resolved_source == "acme/b"


def test_a_maximum_below_the_minimum_is_refused_with_both_numbers() -> None:
    with pytest.raises(ValidationError) as caught:
        Replicas(min=3, max=2)
    assert rule_of(caught.value) == (
        "replicas.max 2 is below replicas.min 3",
        "Set max to 3.",
    )


def test_a_maximum_above_the_minimum_is_refused_without_autoscaling() -> None:
    with pytest.raises(ValidationError) as caught:
        Replicas(min=1, max=4)
    assert rule_of(caught.value) == (
        "replicas.max 4 is above replicas.min 1, but autoscaling is not implemented yet",
        "Set max equal to min.",
    )


def test_a_script_without_a_scripted_engine_is_refused() -> None:
    with pytest.raises(ValidationError) as caught:
        ModelConfig(id="a", script=ScriptConfig())
    assert rule_of(caught.value)[0] == "script is set but engine is 'vllm'"
    assert ModelConfig(id="a", engine="scripted", script=ScriptConfig()).script is not None


@pytest.mark.parametrize(("argument", "field"), vllm_arguments.OWNED.items())
def test_an_engine_argument_that_qwenfleet_sets_is_refused_with_the_field_to_use(
    argument: str, field: str
) -> None:
    with pytest.raises(ValidationError) as caught:
        ModelConfig(id="a", engine_args={argument: 1})
    problem, remedy = rule_of(caught.value)
    assert problem == f"engine_args.{argument} is set by qwenfleet"
    assert remedy == f"Use the model's '{field}' instead."
    assert field in ModelConfig.model_fields


@pytest.mark.parametrize("backend", ["auto", "guidance", "outlines", "lm-format-enforcer"])
def test_a_backend_of_grammars_that_engines_would_not_share_is_refused(backend: str) -> None:
    with pytest.raises(ValidationError) as caught:
        ModelConfig(id="a", engine_args={"structured_outputs_config": {"backend": backend}})
    problem, remedy = rule_of(caught.value)
    assert problem == f"engine_args.structured_outputs_config has backend '{backend}'"
    assert remedy == "Remove it: all engines of a fleet use xgrammar."
    for chosen in ({"backend": "xgrammar"}, {"disable_any_whitespace": True}):
        ModelConfig(id="a", engine_args=cast(Any, {"structured_outputs_config": chosen}))


@pytest.mark.parametrize(
    ("argument", "problem", "remedy"),
    [
        ("enable_lora", "has no place in a fleet", "merged weights"),
        ("api_key", "has no place in a fleet", "Use the setting 'auth' of the fleet."),
        ("max_num_seq", "is not an argument of vLLM 0.32", "Did you mean max_num_seqs?"),
        ("max-num-seqs", "is not an argument of vLLM 0.32", "Did you mean max_num_seqs?"),
        ("warp_drive", "is not an argument of vLLM 0.32", "check its spelling"),
    ],
)
def test_an_argument_that_nobody_would_read_is_refused(
    argument: str, problem: str, remedy: str
) -> None:
    with pytest.raises(ValidationError) as caught:
        ModelConfig(id="a", engine_args={argument: 1})
    found = rule_of(caught.value)
    assert (argument in found[0], problem in found[0]) == (True, True)
    assert remedy in found[1]


def test_qwenfleet_owns_all_of_vllms_arguments_for_the_placement_of_ranks() -> None:
    spec = importlib.util.find_spec("vllm")
    if spec is None or spec.origin is None:
        pytest.skip("vllm is not installed, so its names cannot be compared")
    text = (Path(spec.origin).parent / "engine/arg_utils.py").read_text()
    names = re.findall(r"^    ((?:data_parallel|master|node|nnodes)\w*):", text, re.M)
    assert {"data_parallel_backend", "master_addr", "node_rank"} <= set(names)
    assert set(names) <= vllm_arguments.OWNED.keys()


def test_a_lease_shorter_than_three_heartbeats_is_refused_with_both_values() -> None:
    with pytest.raises(ValidationError) as caught:
        WireConfig(lease_s=2, heartbeat_s=1)
    assert rule_of(caught.value) == (
        "wire.lease_s 2 is shorter than three times wire.heartbeat_s 1",
        "Set lease_s to at least 3.",
    )
    assert WireConfig(lease_s=3, heartbeat_s=1).lease_s == 3


def test_two_models_with_one_id_are_refused_with_both_places() -> None:
    with pytest.raises(ValidationError) as caught:
        FleetConfig(models=(ModelConfig(id="a"), ModelConfig(id="b"), ModelConfig(id="a")))
    assert rule_of(caught.value)[0] == "models[0] and models[2] both have id 'a'"


@pytest.mark.parametrize("model_id", ["", "\u00fc", " a", "a ", "a\n", "a\tb", "a\x7fb", "x" * 201])
def test_an_id_that_would_confuse_a_client_is_refused(model_id: str) -> None:
    with pytest.raises(ValidationError):
        ModelConfig(id=model_id)


@pytest.mark.parametrize(
    "model_id", ["a", "Qwen/Qwen3-Coder", "a b", 'a "b" {c}|$(d)\\', "x" * 200]
)
def test_any_other_id_is_accepted(model_id: str) -> None:
    assert ModelConfig(id=model_id).id == model_id


@pytest.mark.parametrize("name", ["", "-a", "a-", "A", "a_b", "a" * 43])
def test_a_name_that_is_not_a_dns_label_is_refused(name: str) -> None:
    with pytest.raises(ValidationError):
        FleetConfig(name=name)


@pytest.mark.parametrize("port", [True, "8000", 8000.5, 0, 65536])
def test_a_port_must_be_a_whole_number_in_range(port: object) -> None:
    with pytest.raises(ValidationError):
        GatewayConfig.model_validate({"port": port})


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.text(min_size=1, max_size=5), inner, max_size=2)
    ),
    max_leaves=4,
)
models = st.builds(
    ModelConfig,
    id=st.from_regex(r"[a-z][a-z0-9/.-]{0,20}", fullmatch=True),
    replicas=st.integers(1, 64).map(lambda count: Replicas(min=count)),
    max_model_len=st.none() | st.integers(1, 2**20),
    kv_cache_gib=st.floats(0.1, 1000),
    engine_args=st.dictionaries(
        st.sampled_from(sorted(vllm_arguments.ENGINE | vllm_arguments.BOTH)),
        json_values,
        max_size=2,
    ),
)
fleets = st.builds(
    FleetConfig,
    models=st.lists(models, min_size=1, max_size=3, unique_by=lambda model: model.id).map(tuple),
    gateway=st.builds(GatewayConfig, port=st.integers(1, 65535)),
)


@given(fleets)
def test_a_fleet_survives_dump_json_and_validation(config: FleetConfig) -> None:
    assert FleetConfig.model_validate(json.loads(json.dumps(dump(config)))) == config


def test_the_json_schema_is_closed_and_keeps_the_bounds() -> None:
    schema = FleetConfig.model_json_schema()
    assert all(
        part["additionalProperties"] is False
        for part in schema["$defs"].values()
        if part.get("properties")
    )
    assert schema["properties"]["models"]["minItems"] == 1
    assert schema["$defs"]["GatewayConfig"]["properties"]["port"]["maximum"] == 65535


def test_the_configuration_imports_neither_torch_nor_ray_nor_vllm() -> None:
    code = (
        "import sys, qwenfleet.cluster.config.load, qwenfleet.cluster.local.ports\n"
        "print(*{'torch', 'ray', 'vllm'} & set(sys.modules))"
    )
    root = Path(__file__).parents[4]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


def test_tracing_is_off_unless_its_section_is_present() -> None:
    assert FleetConfig().tracing is None
    tracing = FleetConfig.model_validate({"tracing": {}}).tracing
    assert tracing == TracingConfig(endpoint="http://127.0.0.1:4318", sample_ratio=1.0)


@pytest.mark.parametrize(
    ("endpoint", "url"),
    [
        ("http://collector:4318", "http://collector:4318/v1/traces"),
        ("https://collector/", "https://collector/v1/traces"),
        ("https://otlp.example/otlp/v1/traces", "https://otlp.example/otlp/v1/traces"),
    ],
)
def test_an_endpoint_without_a_path_gets_otlps_default(endpoint: str, url: str) -> None:
    assert TracingConfig(endpoint=endpoint).traces_url == url


@pytest.mark.parametrize(
    "endpoint", ["", "collector:4318", "grpc://collector:4317", "http://user:key@c", "http://c?k=1"]
)
def test_an_endpoint_must_be_an_http_url_without_credentials(endpoint: str) -> None:
    with pytest.raises(ValidationError, match="endpoint"):
        TracingConfig(endpoint=endpoint)
