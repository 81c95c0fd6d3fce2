"""The accelerators known to the planner: names, figures, and the origin of every figure.

Rates are dense, without sparsity. The vendors' own data sheets could not be read: figures come from
pages that quote them. Check those from `weak` sources before you rely on them.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from qwenfleet.cluster.models.geometry import QuantMethod
from qwenfleet.cluster.plan_errors import PlanError
from qwenfleet.cluster.units import GIB

NDR_BYTES_PER_S: Final = 50e9
"""Bandwidth of 400 Gb/s InfiniBand or Ethernet, one direction."""


class Vendor(StrEnum):
    NVIDIA = "nvidia"
    AMD = "amd"

    @property
    def kubernetes_resource(self) -> str:
        """The resource name of the device plugin, with which a pod requests GPUs."""
        return f"{self.value}.com/gpu"

    @property
    def node_label(self) -> str:
        """The label with a node's GPU, set by NVIDIA's GPU feature discovery or AMD's node
        labeler."""
        return "nvidia.com/gpu.product" if self is Vendor.NVIDIA else "amd.com/gpu.product-name"


class ComputeDtype(StrEnum):
    """Input types of the matrix units."""

    BF16 = "bf16"
    FP8 = "fp8"
    NVFP4 = "nvfp4"


@dataclass(frozen=True)
class Origin:
    """The source of some figures of an accelerator."""

    fields: tuple[str, ...]
    text: str
    is_weak: bool
    """True for a single secondary page, or general knowledge."""


@dataclass(frozen=True)
class Accelerator:
    """One kind of GPU, in the server that it usually comes in."""

    name: str
    vendor: Vendor
    memory_gib: float
    """Memory available to a program, which is less than the advertised size."""
    hbm_bytes_per_s: float
    flops_per_s: Mapping[ComputeDtype, float | None]
    """Dense rates; None if the matrix units lack the type."""
    link_bytes_per_s: float
    """Bandwidth of one GPU to the others of its server, one direction, all links together."""
    ray_names: tuple[str, ...]
    """Ray's accelerator types, the usual one first."""
    node_labels: tuple[str, ...]
    """Values of `vendor.node_label`."""
    origins: tuple[Origin, ...]
    weight_only: frozenset[QuantMethod] = frozenset()
    """Weight formats that it can store but multiplies as bfloat16, which is slower than native."""
    nic_bytes_per_s: float = NDR_BYTES_PER_S
    """Bandwidth of the network card next to each GPU, one direction."""
    gpus_per_node: int = 8
    """GPUs in the usual server."""
    other_names: tuple[str, ...] = field(default=(), compare=False)
    cautions: tuple[str, ...] = field(default=(), compare=False)
    """Warnings for a plan on this accelerator, as whole sentences."""

    @property
    def memory_bytes(self) -> int:
        """Memory available to a program, in bytes."""
        return int(self.memory_gib * GIB)

    @property
    def ray_name(self) -> str:
        """The value for a fleet's `accelerator`."""
        return self.ray_names[0]

    @property
    def names(self) -> tuple[str, ...]:
        """All names that `find_accelerator` accepts."""
        return (self.name, *self.ray_names, *self.node_labels, *self.other_names)

    def flops(self, dtype: ComputeDtype) -> float | None:
        """Return FLOP/s, or None if the matrix units lack the type."""
        return self.flops_per_s.get(dtype)

    def is_weak(self, name: str) -> bool:
        """Return whether the figure of this field has a weak source."""
        return any(origin.is_weak for origin in self.origins if name in origin.fields)


def _rates(
    bf16: float, fp8: float | None, nvfp4: float | None = None
) -> Mapping[ComputeDtype, float | None]:
    """Convert TFLOP/s to FLOP/s."""
    tflops = {ComputeDtype.BF16: bf16, ComputeDtype.FP8: fp8, ComputeDtype.NVFP4: nvfp4}
    return MappingProxyType({key: None if v is None else v * 1e12 for key, v in tflops.items()})


_VISIBLE: Final = Origin(("memory_gib",), "torch's total memory as users report it", True)
_NIC: Final = Origin(
    ("nic_bytes_per_s",), "NDR, one 400 Gb/s card per GPU of the usual server", True
)
_MLCOMMONS: Final = Origin(
    ("hbm_bytes_per_s", "flops_per_s", "link_bytes_per_s"),
    "MLCommons system descriptions that quote NVIDIA's data sheet; link is half of both directions",
    False,
)
_B200_PAGES: Final = Origin(
    ("hbm_bytes_per_s", "flops_per_s", "link_bytes_per_s"),
    "glennklockwood.com on B200; some sheets say 7.7 TB/s; link is half of both directions",
    True,
)
_ROCM_MEMORY: Final = Origin(("hbm_bytes_per_s",), "ROCm documentation, GPU hardware specs", False)
_AMD_SHEET: Final = Origin(
    ("flops_per_s", "link_bytes_per_s"), "AMD data sheet, unverified; 7 Infinity Fabric links", True
)
_A100: Final = Origin(
    ("memory_gib", "hbm_bytes_per_s", "flops_per_s", "link_bytes_per_s", "nic_bytes_per_s"),
    "NVIDIA A100 data sheet as commonly quoted, unverified; HDR network",
    True,
)
_NVIDIA: Final = (_VISIBLE, _NIC)
_AMD: Final = (_VISIBLE, _NIC, _ROCM_MEMORY, _AMD_SHEET)
MARLIN_FP4: Final = frozenset({QuantMethod.NVFP4})
MARLIN_BOTH: Final = frozenset({QuantMethod.NVFP4, QuantMethod.FP8})
"""vLLM 0.32 has Marlin kernels from compute capability 7.5 on (`quantization/fp8.py`)."""

H100: Final = Accelerator(
    "H100", Vendor.NVIDIA, 79.2, 3.35e12, _rates(989, 1979), 450e9,
    ("H100",), ("NVIDIA-H100-80GB-HBM3",), (_MLCOMMONS, *_NVIDIA), MARLIN_FP4,
    other_names=("H100-80GB", "H100-SXM"),
)  # fmt: skip
H200: Final = Accelerator(
    "H200", Vendor.NVIDIA, 139.8, 4.8e12, _rates(989, 1979), 450e9,
    ("H200",), ("NVIDIA-H200",), (_MLCOMMONS, *_NVIDIA), MARLIN_FP4, other_names=("H200-141GB",),
)  # fmt: skip
B200: Final = Accelerator(
    "B200", Vendor.NVIDIA, 178.4, 8.0e12, _rates(2250, 4500, 9000), 900e9,
    ("B200",), ("NVIDIA-B200",), (_B200_PAGES, *_NVIDIA), other_names=("B200-180GB",),
)  # fmt: skip
A100: Final = Accelerator(
    "A100-80GB", Vendor.NVIDIA, 79.2, 2.039e12, _rates(312, None), 300e9,
    ("A100",), ("NVIDIA-A100-SXM4-80GB",), (_A100,), MARLIN_BOTH, nic_bytes_per_s=25e9,
    cautions=("Ray uses the type A100 for the 40 GB card too; this plan is for 80 GB.",),
)  # fmt: skip
MI300X: Final = Accelerator(
    "MI300X", Vendor.AMD, 191.7, 5.3e12, _rates(1307, 2615), 448e9,
    ("AMD-Instinct-MI300X-OAM", "AMD-Instinct-MI300X-HF"), ("AMD_Instinct_MI300X_OAM",), _AMD,
)  # fmt: skip
MI325X: Final = Accelerator(
    "MI325X", Vendor.AMD, 255.7, 6.0e12, _rates(1307, 2615), 448e9,
    ("AMD-Instinct-MI325X-OAM",), ("AMD_Instinct_MI325X_OAM", "AMD_Instinct_MI325X"), _AMD,
)  # fmt: skip
MI355X: Final = Accelerator(
    "MI355X", Vendor.AMD, 287.7, 8.0e12, _rates(2500, 5000), 537.6e9,
    ("AMD-Instinct-MI355X-OAM",), ("AMD_Instinct_MI355X_OAM", "AMD_Instinct_MI355X"), _AMD,
)  # fmt: skip

ACCELERATORS: Final = (H100, H200, B200, MI300X, MI325X, MI355X, A100)
"""Ray's type names are from `util/accelerators` and `_private/accelerators/amd_gpu.py` of Ray
2.60."""


def find_accelerator(name: str) -> Accelerator:
    """Find an accelerator by its own name, Ray's type, or a node label's value; case, `-`, `_` and
    spaces do not matter. Raises PlanError with the nearest names."""
    for accelerator in ACCELERATORS:
        if plain_name(name) in map(plain_name, accelerator.names):
            return accelerator
    names = {plain_name(known): a.name for a in ACCELERATORS for known in a.names}
    near = difflib.get_close_matches(plain_name(name), names, n=3, cutoff=0.4)
    nearest = list(dict.fromkeys(names[plain] for plain in near))
    hint = f"Did you mean {' or '.join(nearest)}? " if nearest else ""
    raise PlanError(
        f"unknown accelerator '{name}'",
        f"{hint}The planner knows {', '.join(a.name for a in ACCELERATORS)}.",
    )


def plain_name(name: str) -> str:
    """Return a name in the spelling in which names are compared."""
    return name.strip().lower().replace("_", "-").replace(" ", "-")
