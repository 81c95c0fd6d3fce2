"""The files of a Hugging Face model directory, written so that equal input gives equal bytes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

ALIGNMENT_BYTES = 8
"""What safetensors pads its header to, so that mapped tensors are aligned."""


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write one of config.json, tokenizer_config.json, generation_config.json."""
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    path.write_text(text, encoding="utf-8")


def bfloat16_bits(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Round float32 to bfloat16, ties to even; numpy has no bfloat16, so as its 16 bits.

    NaN is not kept apart: weights have none.
    """
    import numpy as np

    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    return ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)


def write_bfloat16(path: Path, tensors: Mapping[str, NDArray[np.uint16]]) -> None:
    """Write tensors given as bfloat16 bits into one safetensors file, sorted by name.

    Written by hand (the format: header length as u64, JSON header, data) because safetensors
    takes bfloat16 only from torch or through raw addresses, and hides a full disk's OSError.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers demands the format
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
