"""Checks before a fleet is deployed, the same for every way to deploy one.

`qwenfleet serve`, the job on a Ray cluster and the Serve application of the helm chart all call it.
Pure except for reading the keys file.
"""

from __future__ import annotations

import os

from qwenfleet.cluster.config.auth import AuthConfig, known_hashes
from qwenfleet.cluster.config.fleet import FleetConfig
from qwenfleet.cluster.vllm_settings import long_context, removed


def check_fleet(config: FleetConfig, *, has_gateway: bool = False) -> list[str]:
    """Return a warning for each setting that has no effect or that locks everybody out.

    `has_gateway`: gateways run on this machine, so the keys file must exist here. On other machines
    the file is checked only if it exists. Raises PlanError for a context that no method reaches,
    and ConfigError for a keys file that cannot be used.
    """
    long_context.check_config(config)
    return [*removed.of_config(config), *_of_keys(config, has_gateway)]


def _of_keys(config: FleetConfig, has_gateway: bool) -> list[str]:
    auth = config.auth
    if not isinstance(auth, AuthConfig):
        return []
    if not has_gateway and auth.keys_file is not None and not os.path.exists(auth.keys_file):
        return []
    return [] if known_hashes(auth) else [f"{auth.keys_file} has no key: every request is refused"]
