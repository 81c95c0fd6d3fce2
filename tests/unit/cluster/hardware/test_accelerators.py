from __future__ import annotations

import pytest

from qwenfleet.cluster.hardware.accelerators import (
    ACCELERATORS,
    Accelerator,
    ComputeDtype,
    Vendor,
    find_accelerator,
)
from qwenfleet.cluster.plan_errors import PlanError

FIGURES = {"memory_gib", "hbm_bytes_per_s", "flops_per_s", "link_bytes_per_s", "nic_bytes_per_s"}


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("MI300X", "MI300X"),
        ("mi300x", "MI300X"),
        ("AMD-Instinct-MI300X-OAM", "MI300X"),
        ("AMD_Instinct_MI325X_OAM", "MI325X"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA-B200", "B200"),
        ("A100", "A100-80GB"),
    ],
)
def test_an_accelerator_is_found_by_rays_name_and_by_its_nodes_label(name: str, found: str) -> None:
    assert find_accelerator(name).name == found


def test_an_unknown_accelerator_is_refused_with_the_nearest() -> None:
    with pytest.raises(PlanError, match=r"unknown accelerator 'MI350X'\. Did you mean MI355X"):
        find_accelerator("MI350X")


def test_names_are_unique_to_an_accelerator() -> None:
    names = [name.lower() for accelerator in ACCELERATORS for name in set(accelerator.names)]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("accelerator", ACCELERATORS, ids=lambda a: a.name)
def test_every_figure_has_an_origin(accelerator: Accelerator) -> None:
    covered = {name for origin in accelerator.origins for name in origin.fields}
    assert covered == FIGURES
    assert all(origin.text for origin in accelerator.origins)


def test_amds_rates_are_marked_as_weak_and_nvidias_of_h100_are_not() -> None:
    assert find_accelerator("MI300X").is_weak("flops_per_s")
    assert not find_accelerator("H100").is_weak("flops_per_s")


def test_an_a100_stores_fp8_without_fp8_matrix_units() -> None:
    a100 = find_accelerator("A100")
    assert a100.flops(ComputeDtype.FP8) is None
    assert "fp8" in a100.weight_only


def test_each_vendor_has_its_resource_and_label() -> None:
    assert Vendor.AMD.kubernetes_resource == "amd.com/gpu"
    assert Vendor.AMD.node_label == "amd.com/gpu.product-name"
    assert Vendor.NVIDIA.node_label == "nvidia.com/gpu.product"
