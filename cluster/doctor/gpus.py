"""GPUs and their drivers, and whether the installed torch can use them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from qwenfleet.cluster.doctor.packages import Package
from qwenfleet.cluster.errors import one_line

SYS = Path("/sys")
PROC = Path("/proc")
QUERY = ("--query-gpu=name,driver_version,memory.total", "--format=csv,noheader,nounits")
TOOL_TIMEOUT_S = 10
TORCH_TIMEOUT_S = 30
"""`import torch` takes seconds, so it runs only if there are GPUs that torch should see."""
NVIDIA, AMD = "0x10de", "0x1002"
"""PCI vendors."""
_DISPLAY, _ACCELERATOR = "0x03", "0x12"
"""PCI classes: display controllers, and processing accelerators such as MI300X."""


@dataclass(frozen=True)
class Gpu:
    name: str
    memory_mib: int = 0
    """0 if unknown."""


@dataclass(frozen=True)
class Gpus:
    nvidia: tuple[Gpu, ...] = ()
    nvidia_driver: str = ""
    nvidia_error: str = ""
    """The error of nvidia-smi, if it failed."""
    amd: tuple[Gpu, ...] = ()
    amd_driver: str = ""
    can_open_kfd: bool = True
    """True if this user may compute on AMD's GPUs."""
    on_bus: tuple[int, int] = (0, 0)
    """Number of NVIDIA's and of AMD's GPUs on the PCI bus, with or without a driver."""
    hidden_by: str = ""
    """An environment variable whose value hides every GPU."""
    seen_by_torch: int | None = None
    """None if torch was not asked, or did not answer."""


def read(torch: Package | None) -> Gpus:
    """Ask nvidia-smi and the kernel, and torch only if it should see GPUs."""
    nvidia, driver, error = _read_nvidia()
    amd = read_amd(SYS)
    should_see = {"cuda": nvidia, "rocm": amd}.get(torch.build if torch else "", ())
    kfd = Path("/dev/kfd")
    return Gpus(
        nvidia=nvidia,
        nvidia_driver=driver,
        nvidia_error=error,
        amd=amd,
        amd_driver=_first_line(SYS / "module/amdgpu/version") or "the kernel's own",
        can_open_kfd=not kfd.exists() or os.access(kfd, os.R_OK | os.W_OK),
        on_bus=read_bus(SYS),
        hidden_by=next(
            (
                name
                for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
                if os.environ.get(name, "0").strip() in {"", "-1"}
            ),
            "",
        ),
        seen_by_torch=_ask_torch() if should_see else None,
    )


def parse_nvidia(text: str) -> tuple[tuple[Gpu, ...], str]:
    """GPUs and driver version from the output of nvidia-smi for `QUERY`."""
    gpus, driver = [], ""
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) == 3:
            name, driver, memory = cells
            gpus.append(Gpu(name, int(memory) if memory.isdigit() else 0))
    return tuple(gpus), driver


def read_amd(sys_folder: Path) -> tuple[Gpu, ...]:
    """AMD's GPUs that can compute: nodes in the KFD's topology with SIMDs. CPUs are nodes too."""
    gpus = []
    for node in sorted((sys_folder / "class/kfd/kfd/topology/nodes").glob("*")):
        lines = (line.split() for line in _text(node / "properties").splitlines())
        properties = {words[0]: words[1] for words in lines if len(words) == 2}
        if int(properties.get("simd_count", "0")):
            version = int(properties.get("gfx_target_version", "0"))
            name = f"gfx{version // 10000}{version // 100 % 100:x}{version % 100:x}"
            gpus.append(Gpu(_first_line(node / "name") or name))
    return tuple(gpus)


def read_bus(sys_folder: Path) -> tuple[int, int]:
    """Number of NVIDIA's and of AMD's GPUs on the PCI bus."""
    vendors = [
        _first_line(device / "vendor")
        for device in (sys_folder / "bus/pci/devices").glob("*")
        if _first_line(device / "class").startswith((_DISPLAY, _ACCELERATOR))
    ]
    return vendors.count(NVIDIA), vendors.count(AMD)


def parse_kernel_module(text: str) -> str:
    """The driver's version, from the text of /proc/driver/nvidia/version."""
    words = text.partition("\n")[0].partition("Module")[2].split()
    return next((word for word in words if word[0].isdigit()), "")


def _read_nvidia() -> tuple[tuple[Gpu, ...], str, str]:
    module = parse_kernel_module(_text(PROC / "driver/nvidia/version"))
    tool = shutil.which("nvidia-smi")
    if tool is None:
        cards = len(list((PROC / "driver/nvidia/gpus").glob("*")))
        return (Gpu("an NVIDIA GPU"),) * cards, module, ""
    try:
        answer = subprocess.run(
            [tool, *QUERY], capture_output=True, text=True, timeout=TOOL_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return (), module, f"no answer within {TOOL_TIMEOUT_S} s"
    if answer.returncode:
        words = one_line(answer.stdout + answer.stderr, 200)
        return (), module, words or f"exit status {answer.returncode}"
    gpus, driver = parse_nvidia(answer.stdout)
    return gpus, driver or module, ""


def _ask_torch() -> int | None:
    """Number of GPUs that torch sees, from a separate process; None if that fails."""
    code = "import torch; print(torch.cuda.device_count())"
    try:
        answer = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            timeout=TORCH_TIMEOUT_S,
            check=True,
        )
        return int(answer.stdout)
    except (subprocess.SubprocessError, ValueError):
        return None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _first_line(path: Path) -> str:
    return _text(path).partition("\n")[0].strip()
