"""The code that made a bundle: commit, and the versions of packages."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_PACKAGES = ("numpy", "onnx", "pyarrow", "pydantic", "ray", "safetensors", "scipy", "torch")


def stated() -> dict[str, object]:
    """The version of raycrt, the commit of its source where that is in git, and the versions of
    Python and of the packages that compute."""
    return {
        "raycrt": _version("raycrt"),
        "commit": commit(Path(__file__).resolve().parents[2]),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
    }


def commit(source: Path) -> str | None:
    """The commit checked out in the repository `source`, with "+changes" if files differ from it;
    None where `source` is not the top of a repository."""
    found = _git(source, "rev-parse", "--show-toplevel", "HEAD")
    if found is None or Path(found.split("\n")[0]) != source:
        return None
    changed = _git(source, "status", "--porcelain", "--untracked-files=no")
    return found.split("\n")[1] + ("+changes" if changed else "")


def _git(source: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(source), *words], capture_output=True, text=True, timeout=60
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
