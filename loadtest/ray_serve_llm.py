"""`python -m qwenfleet.loadtest.ray_serve_llm PORT FILE`: ray.serve.llm with one engine on CPU.

It creates FILE when the engine answers, and runs until SIGTERM. Ray's own environment variables
select direct streaming.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path

from qwenfleet.cluster.local import memory
from qwenfleet.cluster.models import sources
from qwenfleet.loadtest import servers


def main(port: int, ready: Path) -> None:
    """Run the server. Needs ray[serve], vLLM and pyarrow."""
    os.environ |= {
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }
    # Ray reads its environment at import.
    import ray
    from ray import serve
    from ray.serve.llm import LLMConfig, build_openai_app

    ray.init(
        address="local",
        num_cpus=4,
        num_gpus=0,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=memory.OBJECT_STORE_BYTES,
    )
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    config = LLMConfig(
        model_loading_config={
            "model_id": servers.MODEL,
            "model_source": sources.locate(servers.MODEL),
        },
        engine_kwargs={
            "max_model_len": servers.MAX_MODEL_LEN,
            "kv_cache_memory_bytes": servers.KV_CACHE_BYTES,
        },
        placement_group_config={"bundles": [{"CPU": 1}]},
        deployment_config={
            "autoscaling_config": {"min_replicas": 1, "max_replicas": 1},
            "ray_actor_options": {"num_cpus": 0},
        },
    )
    serve.run(build_openai_app({"llm_configs": [config]}), name="peer", route_prefix="/")
    ready.touch()
    stop.wait()
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
