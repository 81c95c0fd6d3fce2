"""Followers: the actors that run an engine's ranks on its second and later nodes.

They are children of the engine's replica and fill the other bundles of its placement group, so Ray
ends them with the replica, whatever the cause.
"""

from __future__ import annotations

import asyncio
import logging
import os
from typing import Any, Final

import ray
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from qwenfleet.cluster.config.model import ModelConfig
from qwenfleet.cluster.errors import EngineStartError
from qwenfleet.cluster.local import ports
from qwenfleet.cluster.models import sources
from qwenfleet.deployments.placement import actor_resources, node_bundle
from qwenfleet.deployments.telemetry.logs import join_serve_log
from qwenfleet.deployments.telemetry.pod_log import PodLog
from qwenfleet.deployments.vllm_adapter import failure_log, plugin_metadata
from qwenfleet.deployments.vllm_adapter.engine_args import NodePlace

logger = logging.getLogger(__name__)

HOST_IP: Final = "VLLM_HOST_IP"
"""vLLM would guess the address at which other nodes can reach it; Ray knows it."""


@ray.remote
class Follower:
    """The ranks of one engine on one of its later nodes."""

    def run(
        self, model: dict[str, Any], place: NodePlace, traces_url: str | None, pod_log: PodLog
    ) -> str:
        """Run this node's ranks until one of them ends; returns why, for the engine's log."""
        join_serve_log(pod_log)
        os.environ[HOST_IP] = ray.util.get_node_ip_address()
        config = ModelConfig.model_validate(model)
        try:
            path = sources.locate(config.resolved_source, lambda text: logger.info(text))
            plugin_metadata.ensure()
            from qwenfleet.deployments.vllm_adapter.core_log import CoreLog
            from qwenfleet.deployments.vllm_adapter.node import run_node

            core_log = CoreLog(pod_log)
            title = run_node(config, path, place, traces_url, core_log)
        except Exception as error:  # process edge: the engine logs the returned reason
            logger.exception("failed to start ranks", extra={"node_rank": place.node_rank})
            return f"{type(error).__name__}: {failure_log.sentence(error)}"
        reason = core_log.reason()
        core_log.close()
        return f"its process {title} exited{reason and f': {reason}'}"


class Followers:
    """The later nodes of one engine, as its first node sees them."""

    def __init__(
        self, head: NodePlace, model: ModelConfig, traces_url: str | None, pod_log: PodLog
    ) -> None:
        self.head = head
        group = ray.util.get_current_placement_group()
        if not isinstance(group, PlacementGroup):
            raise EngineStartError(
                model.id,
                f"its layout spans {model.sharding.nodes} nodes, but its replica has no placement "
                "group",
            )
        self._actors = []
        self._ends: dict[asyncio.Future[str], int] = {}
        for rank in range(1, model.sharding.nodes):
            place = NodePlace(rank, head.head, head.group_port, head.handshake_port)
            actor = Follower.options(  # type: ignore[attr-defined] # ray.remote is not typed
                **actor_resources(node_bundle(model)),
                scheduling_strategy=PlacementGroupSchedulingStrategy(
                    placement_group=group, placement_group_bundle_index=rank
                ),
            ).remote()
            self._actors.append(actor)
            end = actor.run.remote(model.model_dump(mode="json"), place, traces_url, pod_log)
            self._ends[asyncio.wrap_future(end.future())] = rank

    async def first_end(self) -> str:
        """Wait until the engine loses a node; returns which one and why."""
        done, _ = await asyncio.wait(self._ends, return_when=asyncio.FIRST_COMPLETED)
        end = done.pop()
        error = end.exception()
        reason = end.result() if error is None else type(error).__name__
        return f"lost node {self._ends[end]} of the engine: {reason}"

    def end(self) -> None:
        for actor in self._actors:
            ray.kill(actor)


def start_followers(model: ModelConfig, traces_url: str | None, pod_log: PodLog) -> Followers:
    """Start the ranks on an engine's later nodes; call it on its first node. Raises
    EngineStartError without a placement group."""
    address = ray.util.get_node_ip_address()
    os.environ[HOST_IP] = address
    group_port, handshake_port = ports.free_ports(2, address)
    head = NodePlace(0, address, group_port, handshake_port)
    return Followers(head, model, traces_url, pod_log)
