from pathlib import Path

import pytest

from qwenfleet.cluster.config.fleet import FleetConfig
from qwenfleet.cluster.config.load import load, with_overrides
from qwenfleet.cluster.config.model import ModelConfig, Replicas
from qwenfleet.cluster.errors import ConfigError


def sentences(tmp_path: Path, text: str | bytes) -> str:
    """The error of `load` for `text`, with the file called fleet.yaml."""
    file = tmp_path / "fleet.yaml"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(ConfigError) as caught:
        load(file)
    return str(caught.value).replace(str(file), "fleet.yaml")


def model(text: str) -> str:
    """A file with one model; `text` holds more keys of it, from line 3 on."""
    return f"models:\n- id: a\n  {text}\n"


CASES = {
    "an unknown key suggests the nearest": (
        model("repliccas: 2"),
        "fleet.yaml line 3: unknown key 'repliccas' in models[0]. Did you mean 'replicas'?",
    ),
    "an unknown key inside an optional section suggests one of that section": (
        model("script: {stepz: 1}"),
        "fleet.yaml line 3: unknown key 'stepz' in models[0].script. Did you mean 'step_s'?",
    ),
    "an unknown key like no other lists the known ones": (
        "zzz: 1\n",
        "fleet.yaml line 1: unknown key 'zzz' at the top level. "
        "Known keys are name, models, gateway, wire, cache_dir, tracing, logging, slo, auth.",
    ),
    "a collector that does not speak HTTP": (
        "tracing: {endpoint: 'grpc://collector:4317'}",
        "fleet.yaml line 1: tracing.endpoint 'grpc://collector:4317' is not allowed. Expected: URL "
        "of a collector that accepts OTLP over HTTP, such as http://collector:4318. /v1/traces is "
        "added if the URL has no path.",
    ),
    "a missing id": (
        "name: x\nmodels:\n- source: b\n",
        "fleet.yaml line 3: models[0] has no 'id'. Add it: Name that clients send as `model`: "
        "1 to 200 printable ASCII characters, without a space at either end.",
    ),
    "text for a number": (
        model("replicas:\n    min: two"),
        "fleet.yaml line 4: models[0].replicas.min is the text 'two', not a whole number. "
        "Write a whole number.",
    ),
    "a number in quotes": (
        "gateway: {port: '8000'}",
        "fleet.yaml line 1: gateway.port is the text '8000', not a whole number. "
        "Write it in digits and without quotes; YAML reads 1e3 as text.",
    ),
    "yes for a number": (
        "gateway: {keep_alive_s: yes}",
        "fleet.yaml line 1: gateway.keep_alive_s is true (YAML reads yes, no, on and off as true "
        "or false), not a number. Write a number.",
    ),
    "no for text": (
        "models:\n- id: no\n",
        "fleet.yaml line 2: models[0].id is false (YAML reads yes, no, on and off as true or "
        "false), not text. Put it in quotes.",
    ),
    "a fraction for a whole number": (
        "gateway: {port: 8000.5}",
        "fleet.yaml line 1: gateway.port is the number 8000.5, not a whole number. "
        "Write a whole number.",
    ),
    "infinity": (
        "gateway: {keep_alive_s: .inf}",
        "fleet.yaml line 1: gateway.keep_alive_s is the number inf, not a finite number. "
        "Write a finite number.",
    ),
    "nothing after a key": (
        "gateway:\n  port:\n",
        "fleet.yaml line 2: gateway.port is empty, not a whole number. "
        "Write a whole number, or remove the key.",
    ),
    "a date for text": (
        "name: 2024-01-02",
        "fleet.yaml line 1: name is the date 2024-01-02, not text. Put it in quotes.",
    ),
    "an invalid date": (
        "name: 2024-99-02",
        "fleet.yaml line 1: name 2024-99-02 cannot be read: month must be in 1..12. "
        "Put it in quotes if it is text.",
    ),
    "a list for a mapping": (
        "- a\n",
        "fleet.yaml line 1: the file is a list, not a mapping of keys to values. "
        "Write a mapping of keys to values.",
    ),
    "a mapping for a list": (
        "models: {id: a}",
        "fleet.yaml line 1: models is a mapping of keys to values, not a list. Write a list.",
    ),
    "a value above its bound": (
        "gateway: {port: 99999}",
        "fleet.yaml line 1: gateway.port 99999 is out of range. Set it to at most 65535.",
    ),
    "a value on an open bound": (
        model("sampling: {top_p: 0}"),
        "fleet.yaml line 3: models[0].sampling.top_p 0 is out of range. Set it to more than 0.",
    ),
    "an entry of a list out of range": (
        model("engine: scripted\n  script: {tokens: [1, -1]}"),
        "fleet.yaml line 4: models[0].script.tokens[1] -1 is out of range. Set it to at least 0.",
    ),
    "a word that is not one of the choices": (
        model("engine: gpt"),
        "fleet.yaml line 3: models[0].engine is the text 'gpt'. Write 'vllm' or 'scripted'.",
    ),
    "a name with capitals": (
        "name: Foo",
        "fleet.yaml line 1: name 'Foo' is not allowed. Expected: Name of the fleet on its Ray "
        "cluster: 1 to 42 lower-case letters, digits and '-', a letter or digit at both ends.",
    ),
    "no models": (
        "models: []",
        "fleet.yaml line 1: models is empty. Expected: The models to serve.",
    ),
    "a rule across fields points at the field": (
        model("replicas:\n    min: 3\n    max: 2"),
        "fleet.yaml line 5: replicas.max 2 is below replicas.min 3. Set max to 3.",
    ),
    "two models of one id point at the second": (
        "models:\n- id: a\n- id: a\n",
        "fleet.yaml line 3: models[0] and models[1] both have id 'a'. Give each model its own id.",
    ),
    "an engine argument of ours": (
        model("engine_args:\n    model: x"),
        "fleet.yaml line 4: engine_args.model is set by qwenfleet. "
        "Use the model's 'source' instead.",
    ),
    "an engine argument that JSON cannot hold, at any depth": (
        model("engine_args:\n    dict:\n      list: [1, 2024-01-02]"),
        "fleet.yaml line 5: models[0].engine_args.dict.list[1] is the date 2024-01-02, "
        "not text, a number, a list or a mapping. Write text, a number, a list or a mapping.",
    ),
    "a key twice": (
        model("id: b"),
        "fleet.yaml line 3: key 'id' in models[0] is already on line 2. Keep one of the two.",
    ),
    "a key that is not text": (
        model("engine_args: {1: 2}"),
        "fleet.yaml line 3: key 1 in models[0].engine_args is not text in YAML. Put it in quotes.",
    ),
    "a key that is a list": (
        "? [a]\n: b\n",
        "fleet.yaml line 1: key […] at the top level is not text in YAML. Put it in quotes.",
    ),
    "an alias to what holds it": (
        "models: &all\n- *all\n",
        "fleet.yaml line 1: models[0] contains itself. Remove the alias.",
    ),
    "a tab": (
        "models:\n\t- id: a\n",
        "fleet.yaml line 2: a tab is used for indentation. Use spaces.",
    ),
    "an open bracket": (
        "models: [\n",
        "fleet.yaml line 2: invalid YAML: expected the node content, but found '<stream end>' "
        "(while parsing a flow node). Correct this line or the one above.",
    ),
    "two documents": (
        "name: a\n---\nname: b\n",
        "fleet.yaml line 2: invalid YAML: but found another document "
        "(expected a single document in the stream). Correct this line or the one above.",
    ),
    "a Python tag": (
        "name: !!python/object:os.system {}\n",
        "fleet.yaml line 1: invalid YAML: could not determine a constructor for the tag "
        "'tag:yaml.org,2002:python/object:os.system'. Correct this line or the one above.",
    ),
    "a control character": (
        "name: a\nx: \x01\n",
        "fleet.yaml line 2: character '\\x01' is not allowed in YAML. Remove it.",
    ),
    "bytes that are not UTF-8": (
        b"name: a\nx: \xff\n",
        "fleet.yaml line 2: byte 0xff is not UTF-8. Save the file as UTF-8.",
    ),
    "an empty file": (
        "# only a comment\n",
        "fleet.yaml: the file is empty. List at least one model under 'models:'.",
    ),
}


@pytest.mark.parametrize(("text", "wanted"), CASES.values(), ids=CASES.keys())
def test_a_mistake_is_reported_with_file_line_key_and_remedy(
    tmp_path: Path, text: str | bytes, wanted: str
) -> None:
    assert sentences(tmp_path, text).splitlines()[0] == wanted


def test_several_mistakes_are_each_reported_once(tmp_path: Path) -> None:
    text = "gateway:\n  port: 0\n  hots: x\nmodels:\n- id: ''\nwire: {lease_s: 1}\n"
    lines = sentences(tmp_path, text).splitlines()
    assert sorted(line.split(":")[0] for line in lines) == [
        "fleet.yaml line 2",
        "fleet.yaml line 3",
        "fleet.yaml line 5",
        "fleet.yaml line 6",
    ]


def test_an_error_has_file_line_and_key_as_fields(tmp_path: Path) -> None:
    file = tmp_path / "fleet.yaml"
    file.write_text(model("repliccas: 2"))
    with pytest.raises(ConfigError) as caught:
        load(file)
    error = caught.value
    assert (error.file, error.line, error.key) == (str(file), 3, "models[0].repliccas")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: the file does not exist"):
        load(tmp_path / "none.yaml")


def test_a_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="this is a directory"):
        load(tmp_path)


def test_a_path_that_cannot_be_opened_is_reported_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the file cannot be read: File name too long"):
        load(tmp_path / ("x" * 300))


def test_a_whole_file_is_read_with_aliases_and_merges(tmp_path: Path) -> None:
    file = tmp_path / "fleet.yaml"
    file.write_text(
        "\ufeffname: coder\n"
        "models:\n"
        "- &first {id: a, max_model_len: 4096, replicas: &two {min: 2, max: 2}}\n"
        "- {<<: *first, id: b}\n"
        "- {<<: *first, id: c, replicas: *two}\n"
        "wire: {lease_s: 3}\n",
        encoding="utf-8",
    )
    two = Replicas(min=2, max=2)
    config = load(file)
    assert config.name == "coder"
    assert config.models == tuple(
        ModelConfig(id=name, max_model_len=4096, replicas=two) for name in "abc"
    )
    assert config.wire.lease_s == 3


def test_options_override_the_file() -> None:
    config = with_overrides(
        FleetConfig(auth="none"), model="m", engines=3, gateways=2, host="0.0.0.0", port=9000
    )
    assert config.models == (ModelConfig(id="m", replicas=Replicas(min=3, max=3)),)
    gateway = config.gateway
    assert (gateway.replicas, gateway.host, gateway.port) == (2, "0.0.0.0", 9000)


def test_the_engines_option_applies_to_every_model() -> None:
    config = FleetConfig(models=(ModelConfig(id="a"), ModelConfig(id="b")))
    assert {m.replicas.min for m in with_overrides(config, engines=4).models} == {4}


def test_a_model_of_the_file_keeps_its_section() -> None:
    section = ModelConfig(id="b", max_model_len=512)
    config = FleetConfig(models=(ModelConfig(id="a"), section))
    assert with_overrides(config, model="b").models == (section,)


def test_without_options_nothing_changes() -> None:
    config = FleetConfig(
        models=(ModelConfig(id="a", engine_args={"hf_overrides": [1, {"y": None}]}),)
    )
    assert with_overrides(config) == config


OPTIONS: dict[str, tuple[dict[str, int | str], str]] = {
    "port": ({"port": 99999}, "--port 99999 is out of range. Set it to at most 65535."),
    "engines": ({"engines": 0}, "--engines 0 is out of range. Set it to at least 1."),
    "gateways": ({"gateways": 0}, "--gateways 0 is out of range. Set it to at least 1."),
    "host": ({"host": ""}, "--host is empty. Expected: Address to listen on."),
    "host beyond loopback": (
        {"host": "0.0.0.0"},
        "other machines can reach 0.0.0.0, and the fleet requires no API key. Write `auth: {keys: "
        '["HASH"]}` in the fleet\'s file, with the HASH that `qwenfleet keys new` prints, or '
        "`auth: none` to allow anyone.",
    ),
    "model": (
        {"model": " a"},
        "--model ' a' is not allowed. Expected: Name that clients send as `model`: "
        "1 to 200 printable ASCII characters, without a space at either end.",
    ),
}


@pytest.mark.parametrize(("options", "wanted"), OPTIONS.values(), ids=OPTIONS.keys())
def test_a_bad_option_is_named(options: dict[str, int | str], wanted: str) -> None:
    with pytest.raises(ConfigError) as caught:
        with_overrides(FleetConfig(), **options)  # type: ignore[arg-type]  # one option at a time
    assert str(caught.value) == wanted
