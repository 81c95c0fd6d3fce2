import json
import subprocess
import sys
from pathlib import Path

import pytest

from qwenfleet.cluster.errors import ModelSourceError
from qwenfleet.cluster.models import sources


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The smallest directory that is accepted as a model."""
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    (directory / "tokenizer.json").write_text("{}")
    (directory / "model.safetensors").write_bytes(b"12345")
    return directory


def sentence(source: str) -> str:
    with pytest.raises(ModelSourceError) as caught:
        sources.locate(source)
    assert caught.value.source == source
    return str(caught.value).removeprefix(f"model source '{source}': ")


def test_an_embedded_model_is_built_into_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    printed: list[str] = []
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    located = sources.locate("tiny-qwen3-moe", printed.append)
    assert located == f"{tmp_path}/qwenfleet/models/tiny-qwen3-moe-1"
    assert printed == [f"building tiny-qwen3-moe-1 once, into {located}."]
    assert sources.locate(located) == located
    assert sources.weight_bytes(Path(located)) == 2_118_416


def test_a_directory_is_checked_and_made_absolute(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(model.parent)
    monkeypatch.setenv("HOME", str(model.parent))
    for source in (str(model), "./model", "model", "~/model", "../" + model.parent.name + "/model"):
        assert Path(sources.locate(source)).samefile(model)
        assert Path(sources.locate(source)).is_absolute()


def test_an_existing_directory_takes_precedence_over_a_hub_name(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "owner").mkdir()
    model.rename(tmp_path / "owner" / "name")
    monkeypatch.chdir(tmp_path)
    assert sources.locate("owner/name") == str(tmp_path / "owner" / "name")


@pytest.mark.parametrize("source", ["Qwen/Qwen3-Coder-30B-A3B-Instruct", "a/b", "own_er/n.a-m_e"])
def test_a_hub_name_is_returned_unchanged(source: str) -> None:
    assert sources.locate(source) == source


@pytest.mark.parametrize("source", ["a/", "-a/b", "a/b--c", "a/b..c", "a/b.git", "a b/c", "a/b-"])
def test_a_name_that_the_hub_does_not_allow_is_refused(source: str) -> None:
    assert sentence(source).startswith(
        "it is not an embedded model, a directory, or a Hugging Face"
    )


def test_a_name_without_an_owner_gets_the_nearest_embedded_model() -> None:
    assert sentence("SmolLM2-135M") == (
        "it is not an embedded model, a directory, or a Hugging Face name such as owner/name. "
        "Did you mean 'smollm2-135m-instruct'? "
        "Embedded models are smollm2-135m-instruct and tiny-qwen3-moe."
    )


def test_a_name_that_resembles_none_gets_the_list() -> None:
    assert sentence("zzz").endswith(
        "owner/name. Embedded models are smollm2-135m-instruct and tiny-qwen3-moe."
    )


def test_a_missing_directory_is_reported(tmp_path: Path) -> None:
    assert sentence(f"{tmp_path}/absent") == (
        f"{tmp_path}/absent does not exist. "
        "Name a directory with config.json, tokenizer and weights."
    )


def test_a_file_instead_of_a_directory_is_reported(model: Path) -> None:
    assert sentence(f"{model}/config.json").startswith(f"{model}/config.json is a file. Name a")


def test_a_missing_config_is_reported(model: Path) -> None:
    (model / "config.json").unlink()
    assert sentence(str(model)) == (
        f"{model} has no config.json. "
        "Name the directory that holds the model's files, not one above or below it."
    )


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "is not valid JSON (Expecting property name"),
        ("[]", "does not contain a JSON object. Copy it from the model again."),
        ("{}", "has no architectures. Use the config.json from the published model."),
        ('{"architectures": []}', "has no architectures."),
    ],
)
def test_an_unusable_config_is_reported(model: Path, text: str, problem: str) -> None:
    (model / "config.json").write_text(text)
    assert sentence(str(model)).startswith(f"{model}/config.json {problem}")


def test_an_unreadable_config_is_reported(model: Path) -> None:
    (model / "config.json").unlink()
    (model / "config.json").mkdir()
    assert sentence(str(model)) == (
        f"{model}/config.json cannot be read (Is a directory). Give this user read permission."
    )


def test_a_missing_tokenizer_is_reported(model: Path) -> None:
    (model / "tokenizer.json").unlink()
    assert sentence(str(model)) == (
        f"{model} has no tokenizer (none of tokenizer.json, tokenizer.model, vocab.json, "
        "tekken.json). Copy the model's tokenizer files there."
    )


def test_missing_weights_are_reported(model: Path) -> None:
    (model / "model.safetensors").rename(model / "training_args.bin")
    assert sentence(str(model)) == (
        f"{model} has no weights (none of *.safetensors, *.bin, *.pt). "
        "Copy the model's weight files there."
    )


def test_a_missing_shard_is_a_sentence(model: Path) -> None:
    weight_map = {"a": "model.safetensors", "b": "two.safetensors", "c": "three.safetensors"}
    index = model / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    assert sentence(str(model)) == (
        f"{model} lacks 2 of 3 weight files, such as three.safetensors. "
        "Finish the download, or copy the missing files there."
    )
    (model / "two.safetensors").touch()
    (model / "three.safetensors").touch()
    assert sources.locate(str(model)) == str(model)


def test_an_index_without_a_weight_map_is_reported(model: Path) -> None:
    index = model / "model.safetensors.index.json"
    index.write_text("{}")
    assert sentence(str(model)) == f"{index} has no weight_map. Copy it from the model again."


def test_weight_bytes_counts_the_files_that_vllm_reads(model: Path) -> None:
    (model / "more.safetensors").write_bytes(b"123")
    (model / "pytorch_model.bin").write_bytes(b"the same weights again")
    assert sources.weight_bytes(model) == 8
    assert sources.weight_bytes(model.parent) is None


def test_importing_sources_does_not_load_heavy_libraries() -> None:
    code = (
        "import sys; from qwenfleet.cluster.models import cards, sources; "
        "print(sorted({'torch', 'ray', 'vllm', 'numpy', 'gguf', 'tokenizers', 'safetensors', "
        "'huggingface_hub'} & sys.modules.keys()))"
    )
    process = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(sources.__file__).parents[3],
    )
    assert process.stdout == "[]\n"
