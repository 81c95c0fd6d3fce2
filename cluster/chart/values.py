"""The values of the chart `helm/qwenfleet`: the fleet's own tree, and the settings of its pods.

Names are camel case, as in Kubernetes; below `fleet` they are those of a fleet.yaml.
`generate` turns this tree into `values.schema.json`; the defaults are in `values.yaml`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue

from qwenfleet.cluster.config.fleet import FleetConfig
from qwenfleet.cluster.config.section import Section

Object = dict[str, JsonValue]
"""An object of Kubernetes' own API, which its server validates."""
Quantity = str | int | float
Seconds = Annotated[int, Field(ge=1)]
ObjectName = Annotated[str, Field(pattern=r"^([a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?)?$")]
"""Name of a Kubernetes object; empty: none."""


class Digests(Section):
    """Digests of the images."""

    cpu: str = Field(pattern=r"^(sha256:[0-9a-f]{64})?$")
    cuda: str = Field(pattern=r"^(sha256:[0-9a-f]{64})?$")
    rocm: str = Field(pattern=r"^(sha256:[0-9a-f]{64})?$")


class Image(Section):
    """Images built from helm/image: one name, three variants."""

    registry: str
    repository: str = Field(min_length=1)
    tag: str = Field(pattern=r"^([A-Za-z0-9_][A-Za-z0-9._-]{0,120})?$", json_schema_extra={
        "not": {"const": "latest"}
    })  # fmt: skip
    digests: Digests
    pullPolicy: Literal["Always", "IfNotPresent", "Never"]
    pullSecrets: list[Object]


class Resources(Section):
    """Resources of a container."""

    requests: dict[str, Quantity] = Field(default={})
    limits: dict[str, Quantity] = Field(default={})


class Placement(Section):
    """Scheduling and resources of a group's pods."""

    resources: Resources = Resources()
    nodeSelector: dict[str, str] = Field(default={})
    tolerations: list[Object] = Field(default=[])
    priorityClassName: str = ""


class Drained(Placement):
    """Scheduling and resources of pods that drain before they exit."""

    drainSeconds: Seconds = 90
    maxReplicas: int = Field(default=64, ge=1)


class VendorValues(Section):
    """Nodes with accelerators of one vendor."""

    resource: str = Field(min_length=1)
    gpusPerNode: int = Field(ge=1)
    tolerations: list[Object]
    supplementalGroups: list[int]


class Accelerators(Section):
    """Nodes with accelerators, by vendor."""

    nvidia: VendorValues
    amd: VendorValues


class Auth(Section):
    """API keys."""

    mode: Literal["generated", "existing", "none"]
    existingSecret: ObjectName


class RayAuth(Section):
    """Ray's token."""

    existingSecret: ObjectName


class WireTls(Section):
    """TLS between gateways and engines."""

    existingSecret: ObjectName


class HuggingFace(Section):
    """Access to the Hugging Face Hub."""

    existingSecret: ObjectName
    key: str = Field(min_length=1)


class WeightsClaim(Section):
    """Weights on a volume."""

    claimName: ObjectName
    mountPath: str = Field(pattern=r"^/")


class S3(Section):
    """Weights in a bucket."""

    uri: str = Field(pattern=r"^(s3://.+)?$")
    directory: str = Field(pattern=r"^/")
    existingSecret: ObjectName
    region: str
    endpoint: str


class Weights(Section):
    """Sources of model weights."""

    huggingFace: HuggingFace
    pvc: WeightsClaim
    s3: S3


class Cache(Section):
    """The volume for fleet.cache_dir."""

    existingClaim: ObjectName
    create: bool
    storageClass: str
    size: Quantity


class RocksDb(Section):
    """Ray's state on a volume of the head."""

    enabled: bool
    size: Quantity
    storageClass: ObjectName


class GcsFaultTolerance(Section):
    """Fault tolerance of Ray's head."""

    redisAddress: str
    existingSecret: ObjectName
    rocksdb: RocksDb


class Upgrade(Section):
    """Upgrade to a new Ray cluster."""

    gatewayClassName: str
    intervalSeconds: Seconds


class Autoscaler(Section):
    """Ray's autoscaler, in the head pod."""

    idleTimeoutSeconds: Seconds
    resources: Resources


class Service(Section):
    """The Service in front of the gateways."""

    type: Literal["ClusterIP", "NodePort", "LoadBalancer"]
    annotations: dict[str, str]


class Ingress(Section):
    """An Ingress to the gateways."""

    enabled: bool
    className: str
    host: str
    annotations: dict[str, str]
    tlsSecret: ObjectName


class HttpRoute(Section):
    """An HTTPRoute to the gateways."""

    enabled: bool
    parentRefs: list[Object]
    hostnames: list[str]


class NetworkPolicy(Section):
    """Ingress and egress of the pods."""

    enabled: bool
    clients: list[Object]
    operators: list[Object]
    egress: list[Object]


class PodMonitor(Section):
    """The PodMonitor for Prometheus."""

    enabled: bool
    interval: str = Field(pattern=r"^([0-9]+(ms|[smh]))+$")
    labels: dict[str, str]


class Rules(Section):
    """Recording rules and alerts."""

    enabled: bool
    labels: dict[str, str]


class Dashboards(Section):
    """Grafana dashboards."""

    enabled: bool
    labels: dict[str, str]
    annotations: dict[str, str]


class Monitoring(Section):
    """Monitoring objects."""

    podMonitor: PodMonitor
    rules: Rules
    dashboards: Dashboards
    runbooks: str = Field(pattern="^(https?://.+)?$")


class PodDisruptionBudget(Section):
    """Limits on concurrent evictions by node drains."""

    enabled: bool
    head: bool


class ServiceAccount(Section):
    """The ServiceAccount of engines."""

    create: bool
    name: ObjectName
    annotations: dict[str, str]


class Rbac(Section):
    """RBAC permissions of engines."""

    create: bool
    nodes: bool


class PodSecurity(Section):
    """The user and group of all containers."""

    runAsUser: int = Field(ge=1)
    fsGroup: int = Field(ge=1)


class Checks(Section):
    """Checks before anything is installed."""

    crds: Literal["auto", "always", "never"]
    plan: bool


class Tests(Section):
    """Settings of `helm test`."""

    timeoutSeconds: Seconds


class ChartValues(Section):
    """All of `values.yaml`."""

    fleet: FleetConfig
    fullnameOverride: str
    labels: dict[str, str]
    image: Image
    head: Placement
    gateway: Drained
    engine: Drained
    engines: dict[str, Drained]
    accelerators: Accelerators
    auth: Auth
    rayAuth: RayAuth
    wireTls: WireTls
    weights: Weights
    cache: Cache
    gcsFaultTolerance: GcsFaultTolerance
    upgrade: Upgrade
    autoscaler: Autoscaler
    service: Service
    ingress: Ingress
    httpRoute: HttpRoute
    networkPolicy: NetworkPolicy
    monitoring: Monitoring
    pdb: PodDisruptionBudget
    serviceAccount: ServiceAccount
    rbac: Rbac
    podSecurity: PodSecurity
    checks: Checks
    tests: Tests


def schema() -> dict[str, Any]:
    """Return the JSON Schema of the values; only Kubernetes' own objects are open."""
    found = ChartValues.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **found}
