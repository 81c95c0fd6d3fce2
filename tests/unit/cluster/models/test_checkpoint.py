from pathlib import Path

import numpy as np
import safetensors

from qwenfleet.cluster.models.checkpoint import bfloat16_bits, write_bfloat16, write_json


def test_bfloat16_rounds_to_nearest_and_ties_to_even() -> None:
    values = np.array([1.0, -2.5, 1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20], np.float32)
    bits = bfloat16_bits(values).astype(np.uint32) << 16
    assert bits.view(np.float32).tolist() == [1.0, -2.5, 1.0, 1 + 2**-6, 1 + 2**-7]


def test_safetensors_reads_what_was_written_in_any_order(tmp_path: Path) -> None:
    tensors = {
        "b": np.arange(6, dtype=np.uint16).reshape(2, 3),
        "a": np.arange(12, dtype=np.uint16).reshape(3, 4).T,
    }
    write_bfloat16(tmp_path / "one", tensors)
    write_bfloat16(tmp_path / "two", dict(reversed(tensors.items())))
    content = (tmp_path / "one").read_bytes()
    assert content == (tmp_path / "two").read_bytes()
    assert (len(content) - 2 * (6 + 12)) % 8 == 0
    found = dict(safetensors.deserialize(content))
    for name, tensor in tensors.items():
        assert found[name]["dtype"] == "BF16"
        assert tuple(found[name]["shape"]) == tensor.shape
        assert found[name]["data"] == tensor.tobytes()


def test_json_is_written_as_text_that_ends_in_a_newline(tmp_path: Path) -> None:
    write_json(tmp_path / "file.json", {"b": "é", "a": [1]})
    text = (tmp_path / "file.json").read_text(encoding="utf-8")
    assert text == '{\n  "b": "é",\n  "a": [\n    1\n  ]\n}\n'
