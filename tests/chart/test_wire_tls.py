"""TLS between gateways and engines: the fleet reads files that the chart mounts."""

from __future__ import annotations

import pytest

from qwenfleet.cluster.config.fleet import FleetConfig

pytestmark = pytest.mark.chart


def mounted(group):
    """Folders of the pod's main container by the secret that is mounted there."""
    spec = group["template"]["spec"]
    secrets = {v["name"]: v["secret"]["secretName"] for v in spec["volumes"] if "secret" in v}
    (container,) = spec["containers"]
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    return {secret: mounts[name] for name, secret in secrets.items()}


def test_gateways_and_engines_have_the_files_that_their_fleet_names(render, groups, serve_config):
    documents = render({"wireTls": {"existingSecret": "mine"}, "fleet": {"wire": {"lease_s": 9}}})
    (application,) = serve_config(documents)["applications"]
    wire = FleetConfig.model_validate(application["args"]).wire
    assert wire.tls is not None
    assert wire.lease_s == 9
    files = {wire.tls.certificate, wire.tls.key, wire.tls.authority}
    for name, group in groups(documents).items():
        if name == "head":
            assert "mine" not in mounted(group), "the head has no use for the key"
        else:
            folder = mounted(group)["mine"]
            assert files == {f"{folder}/{file}" for file in ("tls.crt", "tls.key", "ca.crt")}


def test_without_a_secret_the_wire_is_plain(render, serve_config):
    (application,) = serve_config(render())["applications"]
    assert FleetConfig.model_validate(application["args"]).wire.tls is None
