"""Each argument of the installed vLLM is sorted: gateway, engine, both, ours, or refused."""

from __future__ import annotations

import os
import warnings
from dataclasses import fields
from typing import Any

import pytest

os.environ.setdefault("VLLM_TARGET_DEVICE", "cpu")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

from qwenfleet.cluster.config import vllm_arguments
from qwenfleet.cluster.config.model import FRONT_END_ARGS, ModelConfig
from qwenfleet.deployments.vllm_adapter.engine_args import engine_args, typed

ENGINES = {field.name for field in AsyncEngineArgs.__dataclass_fields__.values()}
SERVERS = set(vars(make_arg_parser(FlexibleArgumentParser()).parse_args([])))
SORTED = {
    "gateway": vllm_arguments.GATEWAY,
    "both": vllm_arguments.BOTH,
    "engine": vllm_arguments.ENGINE,
    "ours": vllm_arguments.OWNED.keys(),
    "refused": vllm_arguments.REFUSED.keys(),
}


@pytest.mark.parametrize("name", sorted(ENGINES | SERVERS))
def test_each_argument_of_the_installed_vllm_is_in_one_list(name: str) -> None:
    found = [group for group, names in SORTED.items() if name in names]
    assert len(found) == 1, f"sort {name} into vllm_arguments.py: it is in {found or 'no list'}"


def test_no_list_names_an_argument_that_vllm_has_dropped() -> None:
    listed = {name for names in SORTED.values() for name in names}
    assert listed - ENGINES - SERVERS == set()
    assert vllm_arguments.SERVER <= SERVERS - ENGINES
    assert vllm_arguments.BOTH | vllm_arguments.ENGINE <= ENGINES
    assert vllm_arguments.PER_POOL <= vllm_arguments.BOTH


def test_gateways_read_their_own_arguments_and_the_shared_ones() -> None:
    assert set(FRONT_END_ARGS) == vllm_arguments.GATEWAY | vllm_arguments.BOTH


def test_an_engine_gets_no_argument_of_vllms_server() -> None:
    model = ModelConfig(
        id="a",
        engine_args={"response_role": "assistant", "stream_interval": 4, "max_logprobs": 5},
    )
    made = engine_args(model, "/models/a")
    assert (made.max_logprobs, made.stream_interval) == (5, 1)


def test_mappings_become_vllms_classes() -> None:
    made = typed({"structured_outputs_config": {"backend": "guidance"}, "seed": 1})
    assert made["structured_outputs_config"].backend == "guidance"
    assert made["seed"] == 1
    assert fields(made["structured_outputs_config"])


@pytest.mark.parametrize(
    "chosen", [{}, {"structured_outputs_config": {"reasoning_parser": "qwen3"}}]
)
def test_every_engine_compiles_grammars_with_the_same_backend(chosen: dict[str, Any]) -> None:
    made = engine_args(ModelConfig(id="a", engine_args=chosen), "/models/a")
    assert made.structured_outputs_config.backend == "xgrammar"
    parser = "qwen3" if chosen else ""
    assert made.structured_outputs_config.reasoning_parser == parser
