"""The published models known to the planner, and the look-up of a model by name.

Sources: the config.json of each model on Hugging Face, as quoted by other projects, and the model
cards. Qwen3-Coder-480B: BF16 and FP8 (snapshot 003f183a of the FP8 one). A figure that was not seen
in a verbatim file is listed as a `doubt`.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Final

from qwenfleet.cluster.models.config_json import read_geometry
from qwenfleet.cluster.models.geometry import FP8_BLOCKS, NVFP4_GROUPS, Geometry, Quantization
from qwenfleet.cluster.plan_errors import PlanError

CODER_480B: Final = Geometry(
    architecture="Qwen3MoeForCausalLM",
    num_layers=62,
    hidden_size=6144,
    num_heads=96,
    num_kv_heads=8,
    head_dim=128,
    vocab_size=151_936,
    intermediate_size=8192,
    num_experts=160,
    experts_per_token=8,
    moe_intermediate_size=2560,
    tie_word_embeddings=False,
    max_position_embeddings=262_144,
    rope_theta=10_000_000,
    has_qk_norm=True,
    has_qkv_bias=False,
)
CODER_30B: Final = replace(
    CODER_480B,
    num_layers=48,
    hidden_size=2048,
    num_heads=32,
    num_kv_heads=4,
    intermediate_size=5472,
    num_experts=128,
    moe_intermediate_size=768,
)
INSTRUCT_2507: Final = replace(CODER_30B, intermediate_size=6144)
ROPE_DOUBT: Final = "rope_theta was not seen in a verbatim file; the first Qwen3-30B-A3B had 1e6"

DUAL_CHUNK_DOUBT: Final = (
    "its config.json asks for dual chunk attention, for which vLLM 0.32 has no backend"
)
NVFP4_DOUBT: Final = (
    "its config.json was not seen; attention and experts are counted as NVFP4 (four bits, and one "
    "FP8 scale per 16 weights), everything else as bfloat16"
)


@dataclass(frozen=True)
class KnownModel:
    """A model of the catalog, or one read from a directory."""

    name: str
    """Hugging Face id, or path of the directory."""
    geometry: Geometry
    source: str
    """Origin of the geometry."""
    doubts: tuple[str, ...] = ()
    """Warnings for a plan, without final periods."""
    doubted: frozenset[str] = frozenset()
    """Fields of the geometry in which a directory may differ from the catalog."""

    @property
    def short_name(self) -> str:
        """The last part of the name."""
        last = self.name.rstrip("/").rpartition("/")[2]
        return Path(self.name).resolve().name if last in {"", ".", ".."} else last

    @property
    def lower_names(self) -> tuple[str, str]:
        """The names by which `find_published` knows it, in lower case and without the owner: the
        whole one, and a short one."""
        full = self.short_name.lower()
        return (full, full.replace("-instruct", "").replace("-a35b", "").replace("-a3b", ""))


def _published(name: str, geometry: Geometry) -> list[KnownModel]:
    """Return a model and its FP8 variant."""
    forms = [("", geometry), ("-FP8", replace(geometry, quantization=FP8_BLOCKS))]
    names = [(f"Qwen/{name}{suffix}", form) for suffix, form in forms]
    return [KnownModel(name, form, f"{name} config.json, Hugging Face") for name, form in names]


def _with_doubted_rope(model: KnownModel) -> KnownModel:
    return replace(model, doubts=(ROPE_DOUBT,), doubted=frozenset({"rope_theta"}))


NVFP4_480B: Final = KnownModel(
    "nvidia/Qwen3-Coder-480B-A35B-Instruct-NVFP4",
    replace(CODER_480B, quantization=NVFP4_GROUPS),
    "Qwen/Qwen3-Coder-480B-A35B-Instruct config.json, Hugging Face, and NVFP4 by its name",
    doubts=(NVFP4_DOUBT,),
    doubted=frozenset({"quantization"}),
)
"""The NVFP4 model named in vllm-project/recipes Qwen3-Coder-480B-A35B-Instruct.yaml, 2026-04-17."""

CATALOG: Final = (
    *_published("Qwen3-Coder-480B-A35B-Instruct", CODER_480B),
    *_published("Qwen3-Coder-30B-A3B-Instruct", CODER_30B),
    *map(_with_doubted_rope, _published("Qwen3-30B-A3B-Instruct-2507", INSTRUCT_2507)),
    NVFP4_480B,
)


def find_model(name: str) -> KnownModel:
    """Find a model by Hugging Face id, its last part, a short name such as qwen3-coder-480b-fp8, or
    a directory.

    Raises PlanError with the nearest names for an unknown name, PlanError for a directory that has
    the name of a model of the catalog but other shapes, and ModelSourceError for a directory that
    cannot be read.
    """
    known = find_published(name)
    if _is_directory(name):
        home = name.startswith("~")  # neither vLLM nor a quoted argument expands it
        return _read(str(Path(name).expanduser()) if home else name, known)
    if known is None:
        raise _unknown(name)
    owner = name.rpartition("/")[0].lower()
    if owner in ("", known.name.partition("/")[0].lower()):
        return known
    taken = f"its shapes are assumed from its name to be those of {known.name}"
    return replace(known, name=name, doubts=(*known.doubts, taken))


def _read(name: str, known: KnownModel | None) -> KnownModel:
    geometry = read_geometry(name)
    found = KnownModel(name, geometry, f"{name}/config.json")
    if known is not None:
        _check_same(found, known)
    if geometry.has_dual_chunk:
        return replace(found, doubts=(DUAL_CHUNK_DOUBT,))
    return found


def find_published(name: str) -> KnownModel | None:
    """Return the model of the catalog with this name, or None; only the last part counts."""
    last = name.rstrip("/").rpartition("/")[2].lower()
    return next((model for model in CATALOG if last in model.lower_names), None)


def _is_directory(name: str) -> bool:
    return name.startswith((".", "~", "/")) or Path(name).is_dir()


def _check_same(found: KnownModel, known: KnownModel) -> None:
    """Refuse a directory whose shapes differ from the catalog's.

    Two differences are allowed: a long-context method may set its length in either of two fields,
    and a model with experts does not use the width of dense layers.
    """
    free = {"long_context_tokens", *known.doubted}
    free |= {"max_position_embeddings"} if found.geometry.long_context_tokens else set()
    free |= {"intermediate_size"} if known.geometry.is_moe else set()
    compared = (field.name for field in fields(Geometry) if field.compare)
    for name in (name for name in compared if name not in free):
        there, published = getattr(found.geometry, name), getattr(known.geometry, name)
        if there != published:
            raise PlanError(
                f"the config.json of '{found.name}' says {name} {_text(there)}, but {known.name} "
                f"has {_text(published)}",
                "Copy the model again, or rename the directory if it is another model.",
            )


def _text(value: object) -> str:
    return value.name if isinstance(value, Quantization) else str(value)


def _unknown(name: str) -> PlanError:
    names = {short: model.name for model in CATALOG for short in model.lower_names}
    near = difflib.get_close_matches(name.lower().rpartition("/")[2], names, n=3, cutoff=0.4)
    nearest = list(dict.fromkeys(names[short] for short in near))
    hint = f"Did you mean {' or '.join(nearest)}? " if nearest else ""
    return PlanError(
        f"unknown model '{name}'",
        f"{hint}The planner knows {', '.join(m.lower_names[1] for m in CATALOG)}, and directories "
        "with a config.json.",
    )
