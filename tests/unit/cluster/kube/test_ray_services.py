"""What Serve says about a fleet that does not start, as KubeRay reports it."""

from __future__ import annotations

from typing import Any

from qwenfleet.cluster.kube import ray_services
from qwenfleet.cluster.kube.ray_services import Complaint, reason

WHY = (
    "an engine for model 'coder' did not start: Available memory on node 0 (0.16/4.0 GiB) on "
    "startup is less than requested memory for kv (1.0 GiB). See /tmp/ray/serve/replica.log."
)
MESSAGE = (
    "A replica failed to start with exception. Retrying 2 more time(s). Error:\n"
    "\x1b[36mray::ServeReplica:fleet:engine-0.initialize_and_get_metadata()\x1b[39m (pid=1)\n"
    '  File "qwenfleet/deployments/vllm_adapter/core.py", line 110, in start\n'
    "RuntimeError: Engine core initialization failed. See root cause above.\n\n"
    "The above exception was the direct cause of the following exception:\n\n"
    '  File "ray/serve/_private/replica.py", line 900, in initialize\n'
    f"qwenfleet.cluster.errors.EngineStartError: {WHY}\n"
)
"""As Serve of Ray 2.60 words it."""


def service(side: str, applications: dict[str, Any]) -> dict[str, Any]:
    cluster = {
        "rayClusterName": "coder-aaaaa",
        "rayClusterStatus": {"readyWorkerReplicas": 2, "desiredWorkerReplicas": 3},
        "applicationStatuses": applications,
    }
    return {"metadata": {"name": "coder"}, "status": {side: cluster}}


DEPLOYING = {
    "fleet": {
        "status": "DEPLOYING",
        "message": "",
        "serveDeploymentStatuses": {
            "engine-0": {"status": "UPDATING", "message": MESSAGE},
            "gateway": {"status": "HEALTHY", "message": "all is well"},
        },
    }
}


def test_a_first_install_starts_and_does_not_upgrade() -> None:
    found = ray_services.ray_service(service("pendingServiceStatus", DEPLOYING))
    assert found.progress == "starting: coder-aaaaa has 2 of 3 workers"
    assert found.applications == (("fleet", "DEPLOYING"),)


def test_the_reason_of_a_deployment_that_does_not_start_is_found_on_either_side() -> None:
    for side in ("pendingServiceStatus", "activeServiceStatus"):
        found = ray_services.ray_service(service(side, DEPLOYING))
        assert found.complaints == (Complaint("coder-aaaaa", "fleet", "engine-0", "UPDATING", WHY),)


def test_the_message_of_an_application_counts_if_no_deployment_has_one() -> None:
    refused = {"status": "DEPLOY_FAILED", "message": "ValueError: models is empty"}
    found = ray_services.ray_service(service("pendingServiceStatus", {"fleet": refused}))
    (complaint,) = found.complaints
    assert complaint.deployment == ""
    assert complaint.reason == "ValueError: models is empty"
    both = {"fleet": refused | DEPLOYING["fleet"] | {"message": "deployment failed"}}
    found = ray_services.ray_service(service("pendingServiceStatus", both))
    assert [one.deployment for one in found.complaints] == ["engine-0"]


def test_the_last_exception_is_the_reason_if_none_is_ours() -> None:
    trace = 'Error:\n  File "a.py", line 1\nOSError: first\n\n  File "b.py"\nValueError: last\n'
    assert reason(trace) == "ValueError: last"
    assert reason("ray.exceptions.ActorDiedError: the actor died") == (
        "ActorDiedError: the actor died"
    )


def test_a_message_without_an_exception_is_the_reason_itself() -> None:
    waits = "Deployment 'engine-0' has 1 replicas that have\ntaken more than 30s to be scheduled."
    assert reason(waits) == " ".join(waits.split())
