"""Sources of a model's weights: built here, in a directory, or on the Hugging Face Hub."""

import difflib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwenfleet.cluster.errors import ModelSourceError
from qwenfleet.cluster.models import smollm2, tiny_qwen3_moe
from qwenfleet.cluster.models.cache import Announce, Build, cache_root, ignore, materialize

HUB_TIMEOUT_S = 10

HUB_NAME = re.compile(r"(?!.*(--|\.\.))\w([\w.-]*\w)?/\w([\w.-]{0,94}\w)?(?<!\.git)", re.ASCII)
"""A name owner/name, by the rules of huggingface_hub's validate_repo_id."""

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tekken.json")
"""Every model directory from which vLLM can read a tokenizer has one of these."""

WEIGHT_PATTERNS = ("*.safetensors", "*.bin", "*.pt")
"""Weight files in vLLM's order: it reads those of the first pattern that matches."""

NOT_WEIGHTS = {"training_args.bin", "optimizer.bin", "optimizer.pt", "scheduler.pt"}
"""Files that a trainer writes next to the weights."""


@dataclass(frozen=True)
class EmbeddedModel:
    """A model that is built locally, without a download."""

    build: Build
    revision: str


EMBEDDED: Mapping[str, EmbeddedModel] = {
    smollm2.NAME: EmbeddedModel(smollm2.build, smollm2.REVISION),
    tiny_qwen3_moe.NAME: EmbeddedModel(tiny_qwen3_moe.build, tiny_qwen3_moe.REVISION),
}


def locate(source: str, report: Announce = ignore) -> str:
    """Return vLLM's `model` argument: a checked, absolute directory or a name on the Hub.

    Embedded models are built or verified first; `report` shows the progress.
    """
    model = EMBEDDED.get(source)
    if model is not None:
        return str(materialize(source, model.build, model.revision, cache_root(), report))
    if _is_directory(source):
        directory = Path(os.path.expanduser(source)).absolute()
        _check_directory(source, directory)
        return str(directory)
    if HUB_NAME.fullmatch(source):
        return source
    raise _unknown(source)


def check_hub(source: str) -> None:
    """Raise if a model cannot be downloaded from the Hub and is not in the local cache.

    Requests the metadata of the model's config.json, within `HUB_TIMEOUT_S`.
    """
    from huggingface_hub import (
        constants,
        errors,
        get_hf_file_metadata,
        hf_hub_url,
        try_to_load_from_cache,
    )

    if isinstance(try_to_load_from_cache(source, "config.json"), str):
        return
    if constants.HF_HUB_OFFLINE:
        raise ModelSourceError(
            source,
            "it is not in the local Hugging Face cache, and HF_HUB_OFFLINE is set",
            "Unset HF_HUB_OFFLINE, or download the model first.",
        )
    try:
        get_hf_file_metadata(hf_hub_url(source, "config.json"), timeout=HUB_TIMEOUT_S)
    except errors.GatedRepoError as e:
        raise ModelSourceError(
            source,
            "it is gated, and this user does not have access",
            f"Request access on {constants.ENDPOINT}/{source}, then set HF_TOKEN.",
        ) from e
    except errors.RepositoryNotFoundError as e:
        raise ModelSourceError(
            source,
            "it does not exist on the Hugging Face Hub, or it is private",
            "Check the spelling, or set HF_TOKEN to a token with read access.",
        ) from e
    except errors.RemoteEntryNotFoundError as e:
        raise ModelSourceError(
            source,
            "its repository on the Hugging Face Hub has no config.json",
            "Name a repository with weights in Hugging Face format.",
        ) from e
    except (errors.HTTPError, OSError) as e:  # type: ignore[attr-defined]  # its HTTP client's root
        raise ModelSourceError(
            source,
            f"the request to {constants.ENDPOINT} failed ({type(e).__name__})",
            "Check the network, or name a directory that holds the model.",
        ) from e


def weight_bytes(directory: Path) -> int | None:
    """Return the size of the weight files that vLLM would read; None without any."""
    files = _weight_files(directory)
    return sum(path.stat().st_size for path in files) if files else None


def _is_directory(source: str) -> bool:
    """Return whether the source is a local path; `owner/name` is one only if it exists."""
    path = os.path.expanduser(source)
    return source.startswith((".", "~", "/")) or source.count("/") > 1 or os.path.exists(path)


def _check_directory(source: str, directory: Path) -> None:
    """Raise for the first problem that would prevent vLLM from loading the directory."""
    if not directory.is_dir():
        what = "is a file" if directory.exists() else "does not exist"
        raise ModelSourceError(
            source,
            f"{directory} {what}",
            "Name a directory with config.json, tokenizer and weights.",
        )
    architectures = _read_json(source, directory / "config.json").get("architectures")
    if not isinstance(architectures, list) or not architectures:
        raise ModelSourceError(
            source,
            f"{directory}/config.json has no architectures",
            "Use the config.json from the published model.",
        )
    if not any((directory / name).is_file() for name in TOKENIZER_FILES):
        raise ModelSourceError(
            source,
            f"{directory} has no tokenizer (none of {', '.join(TOKENIZER_FILES)})",
            "Copy the model's tokenizer files there.",
        )
    if not _weight_files(directory):
        raise ModelSourceError(
            source,
            f"{directory} has no weights (none of {', '.join(WEIGHT_PATTERNS)})",
            "Copy the model's weight files there.",
        )
    _check_shards(source, directory)


def _check_shards(source: str, directory: Path) -> None:
    """Raise if a file of a sharded checkpoint is missing, as after an interrupted download."""
    index = directory / "model.safetensors.index.json"
    if not index.exists():
        return
    weight_map = _read_json(source, index).get("weight_map")
    if not isinstance(weight_map, dict):
        raise ModelSourceError(
            source, f"{index} has no weight_map", "Copy it from the model again."
        )
    names = {str(name) for name in weight_map.values()}
    missing = sorted(name for name in names if not (directory / name).is_file())
    if missing:
        raise ModelSourceError(
            source,
            f"{directory} lacks {len(missing)} of {len(names)} weight files, such as {missing[0]}",
            "Finish the download, or copy the missing files there.",
        )


def _read_json(source: str, path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as e:
        raise ModelSourceError(
            source,
            f"{path.parent} has no {path.name}",
            "Name the directory that holds the model's files, not one above or below it.",
        ) from e
    except OSError as e:
        raise ModelSourceError(
            source, f"{path} cannot be read ({e.strerror})", "Give this user read permission."
        ) from e
    except ValueError as e:
        raise ModelSourceError(
            source, f"{path} is not valid JSON ({e})", "Copy it from the model again."
        ) from e
    if not isinstance(value, dict):
        raise ModelSourceError(
            source, f"{path} does not contain a JSON object", "Copy it from the model again."
        )
    return value


def _weight_files(directory: Path) -> list[Path]:
    for pattern in WEIGHT_PATTERNS:
        files = [path for path in sorted(directory.glob(pattern)) if path.name not in NOT_WEIGHTS]
        if files:
            return files
    return []


def _unknown(source: str) -> ModelSourceError:
    """Return the error for a source that is not an embedded model, a directory or owner/name."""
    near = difflib.get_close_matches(source.lower(), EMBEDDED, n=1, cutoff=0.4)
    hint = f"Did you mean '{near[0]}'? " if near else ""
    return ModelSourceError(
        source,
        "it is not an embedded model, a directory, or a Hugging Face name such as owner/name",
        f"{hint}Embedded models are {' and '.join(EMBEDDED)}.",
    )
