from __future__ import annotations

import pytest
from pydantic import ValidationError

from qwenfleet.cluster.config.layout import Layout


@pytest.mark.parametrize(
    "text", ["TP1", "TP8", "TP8+EP8", "TP4xDP2+EP8", "DP8+EP8", "TP8xDP2+EP16@2", "TP2xPP4"]
)
def test_a_short_form_survives_parsing(text: str) -> None:
    assert Layout.parse(text).name == text


@pytest.mark.parametrize(
    ("text", "name"), [("tp8+ep", "TP8+EP8"), ("DP8+EP", "DP8+EP8"), (" TP2xDP1 ", "TP2")]
)
def test_a_short_form_may_omit_sizes_that_follow_from_the_rest(text: str, name: str) -> None:
    assert Layout.parse(text).name == name


@pytest.mark.parametrize("text", ["", " ", "8", "TP", "TP8 EP8", "TPx", "EP8xTP8"])
def test_an_invalid_short_form_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="TP4xDP2\\+EP8"):
        Layout.parse(text)


def test_experts_are_distributed_over_all_ranks_or_none() -> None:
    with pytest.raises(ValueError, match=r"TP x DP = 8\. Write TP8\+EP8"):
        Layout.parse("TP8+EP2")


def test_gpus_are_the_product_of_all_sizes_but_the_experts() -> None:
    layout = Layout.parse("TP4xPP2xDP2+EP8@2")
    assert (layout.num_gpus, layout.gpus_per_node, layout.expert_parallel_size) == (16, 8, 8)


def test_nodes_that_cannot_share_evenly_are_refused_with_the_numbers() -> None:
    with pytest.raises(ValidationError, match=r"nodes 3 cannot share 8 GPUs \(8 x 1 x 1\)"):
        Layout(tensor_parallel_size=8, nodes=3)


def test_expert_load_balancing_without_expert_parallel_is_refused() -> None:
    with pytest.raises(ValidationError, match="Set expert_parallel to true"):
        Layout(tensor_parallel_size=2, expert_load_balancing=True)
