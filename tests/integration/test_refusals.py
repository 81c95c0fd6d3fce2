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


def test_a_host_beyond_loopback_without_keys_with_the_line_to_add(fleet):
    sentence = refusal(fleet, "--model", "tiny-qwen3-moe", "--host", "0.0.0.0", "--port", "18999")

    assert "other machines can reach 0.0.0.0" in sentence
    assert '`auth: {keys: ["HASH"]}`' in sentence
    assert "`auth: none`" in sentence


def test_a_key_in_a_keys_file_in_place_of_its_hash(fleet, tmp_path):
    key, line = fleet.cli("keys", "new", "--name", "ann").stdout.splitlines()
    keys = tmp_path / "keys"
    keys.write_text(f"{line}\n{key}\n")
    config = tmp_path / "fleet.yaml"
    config.write_text(
        "models:\n  - id: tiny\n    source: tiny-qwen3-moe\n"
        f"gateway: {{host: 0.0.0.0, port: 18999}}\nauth: {{keys_file: {keys}}}\n"
    )

    sentence = refusal(fleet, "--config", str(config))

    assert f"{keys} line 2: not a key hash" in sentence
    assert key not in sentence


def test_a_layout_over_more_nodes_than_this_machine(fleet, tmp_path):
    config = tmp_path / "fleet.yaml"
    config.write_text(
        "models:\n  - id: tiny\n    source: tiny-qwen3-moe\n"
        "    layout: {tensor_parallel_size: 2, nodes: 2}\ngateway: {port: 18999}\n"
    )

    sentence = refusal(fleet, "--config", str(config))

    assert "spans 2 nodes (TP2@2), but this is one machine" in sentence
    assert "Ray cluster" in sentence
