"""Checks before a fleet is deployed, the same for every way to deploy one.

`qwenfleet serve`, the job on a Ray cluster and the Serve application of the helm chart all call it.
Pure except for reading the keys file and seeing whether a model is a directory.
"""

from __future__ import annotations

import os

from qwenfleet.cluster.config.auth import AuthConfig, known_hashes
from qwenfleet.cluster.config.fleet import FleetConfig
from qwenfleet.cluster.errors import MachineError
from qwenfleet.cluster.models.catalog import find_published
from qwenfleet.cluster.planner.fleet_defaults import CHANGES_THE_MODEL
from qwenfleet.cluster.units import GIB
from qwenfleet.cluster.vllm_settings import long_context, removed


def check_fleet(config: FleetConfig, *, has_gateway: bool = False) -> list[str]:
    """Return a warning for each setting that has no effect or that locks everybody out.

    `has_gateway`: gateways run on this machine, so the keys file must exist here. On other machines
    the file is checked only if it exists. Raises PlanError for a context that no method reaches,
    and ConfigError for a keys file that cannot be used.
    """
    long_context.check_config(config)
    return [*removed.of_config(config), *_of_keys(config, has_gateway)]


def check_cpu_models(config: FleetConfig, available_bytes: int) -> None:
    """Raise MachineError for a published model that would run on this machine's CPUs, because its
    pool has no accelerator, and whose weights are larger than this machine's memory."""
    for pool in config.engine_pools:
        if not pool.runs_vllm_on_cpu or os.path.isdir(os.path.expanduser(pool.resolved_source)):
            continue  # the weights in a directory are measured
        known = find_published(pool.resolved_source)
        if known is None or any(name in pool.engine_args for name in CHANGES_THE_MODEL):
            continue
        if known.geometry.weight_bytes > available_bytes:
            raise MachineError(
                f"'{pool.id}' has no accelerator and would run on CPUs, but its weights are "
                f"{known.geometry.weight_bytes / GIB:.0f} GiB and {available_bytes / GIB:.0f} GiB "
                "of memory is available",
                f"Write a fleet for GPUs with `qwenfleet plan --model {known.name} --accelerator "
                "H100 --output fleet.yaml fleet.yaml` (or your GPU), and serve it with --config.",
            )


def _of_keys(config: FleetConfig, has_gateway: bool) -> list[str]:
    auth = config.auth
    if not isinstance(auth, AuthConfig):
        return []
    if not has_gateway and auth.keys_file is not None and not os.path.exists(auth.keys_file):
        return []
    return [] if known_hashes(auth) else [f"{auth.keys_file} has no key: every request is refused"]
