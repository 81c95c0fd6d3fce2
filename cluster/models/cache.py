"""A cache of the models that qwenfleet builds, which verifies a model before each use.

    <cache root>/
        <name>-<revision>/           created by one rename, its manifest.json written last
        <name>-<revision>.lock       one builder at a time, across processes
        .<name>-<revision>.partial   a build in progress, or one that was killed
        .<name>-<revision>.damaged   a directory that failed verification, about to be deleted

The manifest lists every file's size and SHA-256. Files that it does not list are not checked.
"""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from qwenfleet.cluster.errors import ModelSourceError

MANIFEST = "manifest.json"

LOCK_TIMEOUT_S = 600
"""Time limit for another process's build; the largest embedded model takes seconds."""

Build = Callable[[Path], None]
"""Writes a model's files into an empty directory."""

Announce = Callable[[str], None]
"""Shows one progress line to the user."""


@dataclass(frozen=True)
class Mismatch:
    """A file that differs from the manifest; both sides in words, for a message."""

    file: str
    expected: str
    found: str


def ignore(text: str) -> None:
    """The `Announce` of a caller that shows no progress."""


def cache_root() -> Path:
    """Return the directory of built models, below the user's XDG cache directory."""
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not base.is_absolute():  # unset, or relative: the XDG specification ignores those
        try:
            base = Path.home() / ".cache"
        except RuntimeError as e:
            raise ModelSourceError(
                "embedded models",
                "this user has no home directory for built models",
                "Set XDG_CACHE_HOME to a writable directory.",
            ) from e
    return base / "qwenfleet" / "models"


def materialize(
    name: str, build: Build, revision: str, cache_root: Path, report: Announce = ignore
) -> Path:
    """Return the verified directory of a model; build it if it is absent or damaged.

    Every call reads and hashes every file. Several processes may call this at once. An intact
    directory is returned without the lock, so that a read-only cache inside an image works.
    """
    target = cache_root / f"{name}-{revision}"
    try:
        if target.exists() and first_mismatch(target) is None:
            return target
        cache_root.mkdir(parents=True, exist_ok=True)
        with FileLock(cache_root / f"{target.name}.lock", timeout=LOCK_TIMEOUT_S):
            return _verified_or_rebuilt(target, build, report)
    except Timeout as e:
        raise ModelSourceError(
            name,
            f"another process has held {e.lock_file} for {LOCK_TIMEOUT_S} s",
            "Stop the process that builds this model, then try again.",
        ) from e
    except OSError as e:
        raise _unusable(name, cache_root, e) from e


def first_mismatch(directory: Path) -> Mismatch | None:
    """Return the first file, by name, that differs from the directory's manifest."""
    try:
        files = json.loads((directory / MANIFEST).read_text())["files"]
        expected = {str(name): (int(f["bytes"]), str(f["sha256"])) for name, f in files.items()}
    except (FileNotFoundError, NotADirectoryError):
        return Mismatch(MANIFEST, "a manifest", "no file")
    except (ValueError, KeyError, TypeError, AttributeError):
        return Mismatch(MANIFEST, "a manifest", "an invalid one")
    for name, fingerprint in sorted(expected.items()):
        try:
            found = _fingerprint(directory / name)
        except FileNotFoundError:
            return Mismatch(name, _in_words(fingerprint), "no file")
        if found != fingerprint:
            return Mismatch(name, _in_words(fingerprint), _in_words(found))
    return None


def _verified_or_rebuilt(target: Path, build: Build, report: Announce) -> Path:
    """Do the work of `materialize`, under the lock."""
    partial = target.with_name(f".{target.name}.partial")
    damaged = target.with_name(f".{target.name}.damaged")
    if target.exists():
        mismatch = first_mismatch(target)
        if mismatch is None:  # another process built it while this one waited
            return target
        report(
            f"{target / mismatch.file} is damaged: expected {mismatch.expected}, "
            f"found {mismatch.found}; rebuilding the model."
        )
        _remove(damaged)
        target.rename(damaged)  # one step: no reader sees it half deleted
    else:
        report(f"building {target.name} once, into {target}.")
    _remove(damaged)
    _remove(partial)
    partial.mkdir()
    try:
        build(partial)
        _seal(partial)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)  # frees the space on a full disk
        raise
    partial.rename(target)  # one step: no reader sees it half built
    _fsync(target.parent)
    return target


def _seal(directory: Path) -> None:
    """Flush every file to disk, then write the manifest."""
    files = {}
    for path in sorted(path for path in directory.rglob("*") if path.is_file()):
        num_bytes, sha256 = _fingerprint(path)
        files[path.relative_to(directory).as_posix()] = {"bytes": num_bytes, "sha256": sha256}
        _fsync(path)
    manifest = directory / MANIFEST
    manifest.write_text(json.dumps({"files": files}, indent=2) + "\n")
    _fsync(manifest)
    _fsync(directory)


def _fingerprint(path: Path) -> tuple[int, str]:
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        return file.tell(), sha256


def _in_words(fingerprint: tuple[int, str]) -> str:
    num_bytes, sha256 = fingerprint
    return f"sha256 {sha256[:12]} ({num_bytes} bytes)"


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _unusable(name: str, cache_root: Path, error: OSError) -> ModelSourceError:
    """Return an error of the operating system as a sentence with a remedy."""
    path = error.filename or cache_root
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ModelSourceError(
            name,
            f"the disk of {cache_root} is full",
            "Free some space, or set XDG_CACHE_HOME to a directory on another disk.",
        )
    reason = (error.strerror or str(error)).lower()
    return ModelSourceError(
        name,
        f"{path} cannot be used ({reason})",
        "Set XDG_CACHE_HOME to a directory that you can read and write.",
    )
