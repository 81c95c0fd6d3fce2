"""vLLM's logging setup, which belongs to the processes that vLLM starts and not to a replica.

It replaces and closes every handler of its process, and Serve takes a replica whose handler is
closed for broken. vLLM internals used here (0.32): LoggingConfig, AsyncEngineArgs.
"""

from __future__ import annotations

from vllm.config import VllmConfig
from vllm.config.logging import LoggingConfig
from vllm.engine.arg_utils import AsyncEngineArgs

from qwenfleet.deployments.vllm_adapter.core_log import CoreLog


def no_setup() -> LoggingConfig:
    """Return a configuration that leaves the logging of its process alone, whatever the
    environment asks for."""
    return LoggingConfig(configure_logging=False, pylogging_config_file=None)


def create_engine_config(
    arguments: AsyncEngineArgs, core_log: CoreLog, *, headless: bool = False
) -> VllmConfig:
    """Create the configuration in a replica. Only the processes of the core set up vLLM's logging,
    as the arguments and the environment say, and to our handlers."""
    of_the_core = arguments.create_logging_config()
    arguments.logging_config = no_setup()
    arguments.log_level = arguments.log_config_file = None
    config = arguments.create_engine_config(headless=headless)
    config.logging_config = core_log.join(of_the_core)
    return config
