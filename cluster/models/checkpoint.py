"""Writes the files of a Hugging Face model directory; equal input gives equal bytes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

ALIGNMENT_BYTES = 8
"""safetensors pads its header to a multiple of this, so that mapped tensors are aligned."""


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write one of config.json, tokenizer_config.json, generation_config.json."""
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    path.write_text(text, encoding="utf-8")


def bfloat16_bits(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Round float32 to bfloat16, ties to even. Returns the 16 bits: numpy has no bfloat16.

    NaN is not handled, because weights contain none.
    """
    import numpy as np

    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    return ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)


def write_bfloat16(path: Path, tensors: Mapping[str, NDArray[np.uint16]]) -> None:
    """Write tensors given as bfloat16 bits to one safetensors file, sorted by name.

    This does not use the safetensors package, which takes bfloat16 only from torch or through raw
    addresses and hides the OSError of a full disk. The format: header length as u64, JSON header,
    data.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # required by transformers
    offset = 0
    for name, tensor in sorted(tensors.items()):
        header[name] = {
            "dtype": "BF16",
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.nbytes],
        }
        offset += tensor.nbytes
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % ALIGNMENT_BYTES)
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little"))
        file.write(encoded)
        for _, tensor in sorted(tensors.items()):
            file.write(tensor.astype("<u2", order="C", copy=False).data)
