"""An engine's ranks on its second and later nodes, started as `vllm serve --headless` starts them.

vLLM internals used here (0.32): MultiprocExecutor, CoreEngineProcManager, Executor.get_class.
"""

from __future__ import annotations

from vllm.config import VllmConfig
from vllm.utils.network_utils import get_tcp_uri
from vllm.v1.engine.utils import CoreEngineProcManager
from vllm.v1.executor.abstract import Executor
from vllm.v1.executor.multiproc_executor import MultiprocExecutor

from qwenfleet.cluster.config.model import ModelConfig
from qwenfleet.deployments.vllm_adapter import logging_setup, processes
from qwenfleet.deployments.vllm_adapter.core_log import CoreLog
from qwenfleet.deployments.vllm_adapter.engine_args import NodePlace, engine_args


def run_node(
    model: ModelConfig, path: str, place: NodePlace, traces_url: str | None, core_log: CoreLog
) -> str:
    """Run this node's ranks until one ends, then kill the others; returns the title of the one that
    ended first. `core_log` has the reason."""
    arguments = engine_args(model, path, traces_url, place)
    config = logging_setup.create_engine_config(arguments, core_log, headless=True)
    if config.parallel_config.node_rank_within_dp > 0:
        keeper: MultiprocExecutor | CoreEngineProcManager
        keeper = executor = MultiprocExecutor(config, monitor_workers=False)
        started = [worker.proc for worker in executor.workers]
    else:
        keeper = manager = _start_cores(config)
        started = manager.processes
    title = processes.first_end({p.pid: p.name for p in started if p.pid is not None})
    processes.kill()  # before the keeper is deleted: it would first wait seconds for them
    del keeper
    return title


def _start_cores(config: VllmConfig) -> CoreEngineProcManager:
    """Start the cores of this node's data-parallel ranks."""
    parallel = config.parallel_config
    return CoreEngineProcManager(
        local_engine_count=parallel.data_parallel_size_local,
        start_index=parallel.data_parallel_rank,
        local_start_index=0,
        vllm_config=config,
        local_client=False,
        handshake_address=get_tcp_uri(
            parallel.data_parallel_master_ip, parallel.data_parallel_rpc_port
        ),
        executor_class=Executor.get_class(config),
        log_stats=True,
    )
