"""Where Ray's state outlives its head, and what users read if it does not."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.chart

CHART = __file__.replace("tests/chart/test_head_store.py", "helm/qwenfleet")
ROCKSDB = {"enabled": True, "size": "2048Mi", "storageClass": "zonal"}


@pytest.mark.parametrize(
    ("rocksdb", "storage"),
    [
        ({"enabled": True}, {"size": "1Gi"}),
        (ROCKSDB, {"size": "2Gi", "storageClassName": "zonal"}),
    ],
)
def test_ray_s_state_is_kept_on_a_volume(render, only, check_ray_service, rocksdb, storage):
    service = only(render({"gcsFaultTolerance": {"rocksdb": rocksdb}}), "RayService")
    options = service["spec"]["rayClusterConfig"]["gcsFaultToleranceOptions"]
    assert options == {"backend": "rocksdb", "storage": storage}
    check_ray_service(service)


@pytest.mark.parametrize("other", [{"redisAddress": "redis:6379"}, {"existingSecret": "redis"}])
def test_two_stores_are_refused(render, refused, other):
    with pytest.raises(refused, match=r"has both a Redis \(.*redis.*\) and rocksdb.enabled"):
        render({"gcsFaultTolerance": {"rocksdb": {"enabled": True}, **other}})


def test_kuberay_s_own_mount_and_variables_are_left_to_it(render, groups):
    """Its operator refuses a head that mounts /data/gcs or sets RAY_gcs_storage."""
    head = groups(render({"gcsFaultTolerance": {"rocksdb": ROCKSDB}}))["head"]
    (container,) = head["template"]["spec"]["containers"]
    assert "/data/gcs" not in {mount["mountPath"] for mount in container["volumeMounts"]}
    assert not any(entry["name"].startswith("RAY_gcs_storage") for entry in container["env"])


@pytest.mark.parametrize(
    ("options", "is_warned"),
    [
        ((), True),
        (("--set", "gcsFaultTolerance.redisAddress=redis:6379"), False),
        (("--set", "gcsFaultTolerance.rocksdb.enabled=true"), False),
    ],
)
def test_notes_say_what_a_lost_head_costs_and_how_to_uninstall(helm, options, is_warned):
    install = ("install", "coder", CHART, "--dry-run=client", "--disable-openapi-validation")
    _, _, notes = helm.run(*install, *options).partition("NOTES:")
    assert ("every stream is cut" in notes) is is_warned
    assert "uninstall coder --wait" in notes
