"""What `qwenfleet serve` refuses before it starts anything: a sentence and exit status 1."""

from __future__ import annotations

import json

import pytest

pytestmark = pytest.mark.integration


def refusal(fleet, *arguments):
    answer = fleet.cli("serve", *arguments)
    assert answer.returncode == 1, answer.stdout
    assert "Traceback" not in answer.stderr
    return answer.stderr


def test_a_port_in_use(fleet):
    port = fleet.url.rpartition(":")[2]

    sentence = refusal(fleet, "--port", port)

    assert port in sentence
    assert "--port" in sentence


def test_more_engines_than_memory_holds(fleet):
    sentence = refusal(fleet, "--engines", "900", "--port", "18999")

    assert "900" in sentence
    assert "GiB" in sentence


def test_a_directory_without_weights(fleet, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["Qwen3MoeForCausalLM"]}))
    (tmp_path / "tokenizer.json").write_text("{}")

    assert "weights" in refusal(fleet, "--model", str(tmp_path), "--port", "18999")


def test_an_unknown_key_with_file_line_and_the_nearest(fleet, tmp_path):
    config = tmp_path / "fleet.yaml"
    config.write_text(
        "models:\n  - id: tiny\n    source: tiny-qwen3-moe\n    repliccas: {min: 1}\n"
    )

    sentence = refusal(fleet, "--config", str(config))

    assert "fleet.yaml line 4" in sentence
    assert "repliccas" in sentence
    assert "'replicas'" in sentence


def test_a_layout_over_more_nodes_than_this_machine(fleet, tmp_path):
    config = tmp_path / "fleet.yaml"
    config.write_text(
        "models:\n  - id: tiny\n    source: tiny-qwen3-moe\n"
        "    layout: {tensor_parallel_size: 2, nodes: 2}\ngateway: {port: 18999}\n"
    )

    sentence = refusal(fleet, "--config", str(config))

    assert "spans 2 nodes (TP2@2), and this is one machine" in sentence
    assert "Ray cluster" in sentence
