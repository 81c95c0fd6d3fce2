"""What the chart `helm/qwenfleet` takes as values: the fleet's own tree, and where its pods run.

Names are camel case, as Kubernetes' are; below `fleet` they are those of a fleet.yaml.
`chart_generate` turns this tree into `values.schema.json`; the defaults are in `values.yaml`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue

from qwenfleet.cluster.config.fleet import FleetConfig
from qwenfleet.cluster.config.section import Section

Object = dict[str, JsonValue]
"""A piece of Kubernetes' own API, which its server checks."""
Quantity = str | int | float
Seconds = Annotated[int, Field(ge=1)]
ObjectName = Annotated[str, Field(pattern=r"^([a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?)?$")]
"""Of a Kubernetes object; empty names none."""


class Digests(Section):
    """Digests of the images."""

    cpu: str = Field(pattern=r"^(sha256:[0-9a-f]{64})?$")
    cuda: str = Field(pattern=r"^(sha256:[0-9a-f]{64})?$")
    rocm: str = Field(pattern=r"^(sha256:[0-9a-f]{64})?$")


class Image(Section):
    """The images of helm/image: one name, three flavours."""

    registry: str
    repository: str = Field(min_length=1)
    tag: str = Field(pattern=r"^([A-Za-z0-9_][A-Za-z0-9._-]{0,120})?$", json_schema_extra={
        "not": {"const": "latest"}
    })  # fmt: skip
    digests: Digests
    pullPolicy: Literal["Always", "IfNotPresent", "Never"]
    pullSecrets: list[Object]


class Resources(Section):
    """Of a container."""

    requests: dict[str, Quantity] = Field(default={})
    limits: dict[str, Quantity] = Field(default={})


class Placement(Section):
    """Where the pods of a group run, and with what."""

    resources: Resources = Resources()
    nodeSelector: dict[str, str] = Field(default={})
    tolerations: list[Object] = Field(default=[])
    priorityClassName: str = ""


class Drained(Placement):
    """Of pods whose work moves away before they end."""

    drainSeconds: Seconds = 90


class Vendor(Section):
    """The accelerators of one vendor."""

    resource: str = Field(min_length=1)
    gpusPerNode: int = Field(ge=1)
    tolerations: list[Object]
    supplementalGroups: list[int]


class Accelerators(Section):
    """Each vendor's."""

    nvidia: Vendor
    amd: Vendor


class Auth(Section):
    """Who may send requests."""

    mode: Literal["generated", "existing", "none"]
    existingSecret: ObjectName


class RayAuth(Section):
    """Who may drive Ray."""

    existingSecret: ObjectName


class HuggingFace(Section):
    """The Hub."""

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
    """Where models come from."""

    huggingFace: HuggingFace
    pvc: WeightsClaim
    s3: S3


class Cache(Section):
    """The volume behind fleet.cache_dir."""

    existingClaim: ObjectName
    create: bool
    storageClass: str
    size: Quantity


class GcsFaultTolerance(Section):
    """Whether Ray's head can be lost."""

    redisAddress: str
    existingSecret: ObjectName


class Upgrade(Section):
    """How a new Ray cluster takes over."""

    gatewayClassName: str
    intervalSeconds: Seconds


class Autoscaler(Section):
    """Ray's, beside the head."""

    idleTimeoutSeconds: Seconds
    resources: Resources


class Service(Section):
    """The Service in front of the gateways."""

    type: Literal["ClusterIP", "NodePort", "LoadBalancer"]
    annotations: dict[str, str]


class Ingress(Section):
    """An Ingress to it."""

    enabled: bool
    className: str
    host: str
    annotations: dict[str, str]
    tlsSecret: ObjectName


class HttpRoute(Section):
    """An HTTPRoute to it."""

    enabled: bool
    parentRefs: list[Object]
    hostnames: list[str]


class NetworkPolicy(Section):
    """Who reaches the pods, and whom they reach."""

    enabled: bool
    clients: list[Object]
    operators: list[Object]
    egress: list[Object]


class PodMonitor(Section):
    """What Prometheus scrapes."""

    enabled: bool
    interval: str = Field(pattern=r"^([0-9]+(ms|[smh]))+$")
    labels: dict[str, str]


class Rules(Section):
    """What it records, and alerts of."""

    enabled: bool
    labels: dict[str, str]


class Dashboards(Section):
    """What Grafana shows."""

    enabled: bool
    labels: dict[str, str]
    annotations: dict[str, str]


class Monitoring(Section):
    """For those who watch."""

    podMonitor: PodMonitor
    rules: Rules
    dashboards: Dashboards
    runbooks: str = Field(pattern="^(https?://.+)?$")


class PodDisruptionBudget(Section):
    """How many pods a node drain may take at once."""

    enabled: bool
    head: bool


class ServiceAccount(Section):
    """Who engines are to Kubernetes."""

    create: bool
    name: ObjectName
    annotations: dict[str, str]


class Rbac(Section):
    """What they may do."""

    create: bool
    nodes: bool


class PodSecurity(Section):
    """The user that all containers run as."""

    runAsUser: int = Field(ge=1)
    fsGroup: int = Field(ge=1)


class Checks(Section):
    """What is refused before anything is installed."""

    crds: Literal["auto", "always", "never"]
    plan: bool


class Tests(Section):
    """`helm test`."""

    timeoutSeconds: Seconds


class ChartValues(Section):
    """The whole of `values.yaml`."""

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
    """JSON Schema of the values, closed at every level but for Kubernetes' own objects."""
    found = ChartValues.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **found}
