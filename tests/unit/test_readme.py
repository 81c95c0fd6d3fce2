"""README is short, and its first screen holds the commands that a newcomer with a laptop and an
operator with a node of eight GPUs came for."""

from __future__ import annotations

from qwenfleet.cluster.models.catalog import find_model
from tests.pages import ROOT, read

README = read("README.md")
FIRST_SCREEN = "\n".join(README.splitlines()[:47])


def test_it_fits_on_two_screens():
    assert len(README.encode()) <= 7 * 1024


def test_what_it_is_takes_20_words():
    line = README.split("\n\n")[1]

    assert 5 < len(line.split()) <= 20


def test_the_first_screen_serves_a_laptop_and_asks_it():
    assert "\nmake serve\n" in FIRST_SCREEN
    assert "curl -s http://127.0.0.1:8000/v1/chat/completions" in FIRST_SCREEN


def test_the_first_screen_serves_the_480b_model_on_both_vendors_gpus():
    for command in (
        "pip install '.[cuda]'",
        "hf download Qwen/Qwen3-Coder-480B-A35B-Instruct-FP8",
        "qwenfleet plan --model qwen3-coder-480b-fp8 --accelerator H100 ",
        "qwenfleet plan --model qwen3-coder-480b-fp8 --accelerator MI300X ",
        "vllm/vllm-openai-rocm",
        "ray job submit ",
        "helm install ",
    ):
        assert command in FIRST_SCREEN
    assert FIRST_SCREEN.count("qwenfleet serve --config fleet.yaml") == 2


def test_the_size_of_the_weights_is_the_catalog_s():
    size = find_model("qwen3-coder-480b-fp8").geometry.weight_bytes

    assert f"{size / 1e9:.0f} GB" in FIRST_SCREEN


def test_it_links_to_every_page_of_docs():
    for page in sorted((ROOT / "docs").glob("*.md")):
        assert f"(docs/{page.name})" in README
