"""GPUs as nvidia-smi and the kernel's files report them."""

from __future__ import annotations

from pathlib import Path

from qwenfleet.cluster.doctor import gpus
from qwenfleet.cluster.doctor.gpus import Gpu

TWO_H100 = "NVIDIA H100 80GB HBM3, 580.65.06, 81559\nNVIDIA H100 80GB HBM3, 580.65.06, 81559\n"
PROC_VERSION = (
    "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build\n"
    "GCC version:  gcc version 12.3.0\n"
)
OLD_PROC_VERSION = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  470.57.02  Tue Jul 13 2021\n"
CPU_NODE = "cpu_cores_count 96\nsimd_count 0\ngfx_target_version 0\n"
MI300X_NODE = "cpu_cores_count 0\nsimd_count 1216\ngfx_target_version 90402\n"


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_nvidia_smi_names_each_gpu_and_the_driver() -> None:
    found, driver = gpus.parse_nvidia(TWO_H100)
    assert found == (Gpu("NVIDIA H100 80GB HBM3", 81559),) * 2
    assert driver == "580.65.06"


def test_a_gpu_without_a_memory_size_counts_too() -> None:
    found, _ = gpus.parse_nvidia("NVIDIA GB10, 580.95.05, [N/A]\n")
    assert found == (Gpu("NVIDIA GB10", 0),)


def test_an_answer_without_devices_has_no_gpus() -> None:
    assert gpus.parse_nvidia("No devices were found\n") == ((), "")


def test_the_kernel_modules_version_is_read_in_both_forms() -> None:
    assert gpus.parse_kernel_module(PROC_VERSION) == "580.65.06"
    assert gpus.parse_kernel_module(OLD_PROC_VERSION) == "470.57.02"
    assert gpus.parse_kernel_module("") == ""


def test_amds_gpus_are_the_nodes_of_the_topology_that_compute(tmp_path: Path) -> None:
    nodes = tmp_path / "class/kfd/kfd/topology/nodes"
    write(nodes / "0/properties", CPU_NODE)
    write(nodes / "1/properties", MI300X_NODE)
    write(nodes / "2/properties", MI300X_NODE)
    write(nodes / "2/name", "ip discovery\n")
    assert gpus.read_amd(tmp_path) == (Gpu("gfx942"), Gpu("ip discovery"))


def test_only_gpus_of_a_vendor_on_the_bus_are_counted(tmp_path: Path) -> None:
    devices = tmp_path / "bus/pci/devices"
    for name, vendor, kind in (
        ("0", "0x10de", "0x030200"),
        ("1", "0x10de", "0x068000"),
        ("2", "0x1002", "0x120000"),
        ("3", "0x8086", "0x030000"),
    ):
        write(devices / name / "vendor", f"{vendor}\n")
        write(devices / name / "class", f"{kind}\n")
    assert gpus.read_bus(tmp_path) == (1, 1)


def test_this_machine_can_be_read_without_asking_torch() -> None:
    found = gpus.read(None)
    assert found.seen_by_torch is None
    assert len(found.nvidia) >= 0
