"""A wheel: one name, everything that it needs, and a description for an index."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest

from raycrt import __version__, recipes

ROOT = Path(__file__).resolve().parent.parent
# Folders of the source tree, and where they are installed.
FOLDERS = {"raycrt": "raycrt", "tuning": "raycrt/tuning", "cluster": "raycrt/cluster"}
# A demo of seconds.
TINY = {
    "model.width": 16,
    "train.epochs": 3,
    "data.limit": 300,
    "certify.steps": 10,
    "search.trials": 2,
    "search.rungs": [1],
    "search.rows": 50,
    "search.finalists": 1,
    "search.seeds": 1,
}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the source tree: building leaves files in it."""
    place = tmp_path_factory.mktemp("source")
    for name in FOLDERS:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, place / name, symlinks=True, ignore=ignored)
    (place / "docs" / "package").mkdir(parents=True)
    for name in ("pyproject.toml", "docs/package/README.md", "LICENSE"):
        shutil.copy(ROOT / name, place / name)
    return place


@pytest.fixture(scope="module")
def wheel(source: Path) -> Path:
    build = "from setuptools import build_meta; build_meta.build_wheel('dist')"
    done = subprocess.run(
        [sys.executable, "-c", build], cwd=source, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (made,) = (source / "dist").glob("*.whl")
    return made


def test_a_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    files = set(zipfile.ZipFile(wheel).namelist())
    assert {name.partition("/")[0] for name in files} == {
        "raycrt",
        f"raycrt-{__version__}.dist-info",
    }
    code = {
        f"{installed}/{file.relative_to(ROOT / name)}"
        for name, installed in FOLDERS.items()
        for file in (ROOT / name).rglob("*.py")
    }
    shipped = {f"raycrt/recipes/{name}.yaml" for name in recipes.names()} | {"raycrt/py.typed"}
    for name, installed in FOLDERS.items():
        templates = (ROOT / name).rglob("templates/*")
        shipped |= {f"{installed}/{file.relative_to(ROOT / name)}" for file in templates}
    assert {name for name in files if name.startswith("raycrt/")} == code | shipped


def test_an_index_is_given_a_description_without_links_into_the_repository(wheel: Path) -> None:
    (name,) = (name for name in zipfile.ZipFile(wheel).namelist() if name.endswith("/METADATA"))
    stated = message_from_bytes(zipfile.ZipFile(wheel).read(name))
    assert stated["Version"] == __version__
    text = stated.get_payload()
    assert text.strip() == (ROOT / "docs" / "package" / "README.md").read_text().strip()
    assert "raycrt demo" in text and not re.search(r"\]\((?!https://)", text)


def _fresh(place: Path, *what: str | Path) -> Path:
    """The programs of a fresh environment with `what` installed. It sees what raycrt needs in this
    one but, as .pth files there are not read, no editable raycrt."""
    venv.create(place, with_pip=False)
    paths = sysconfig.get_paths(vars={"base": str(place), "platbase": str(place)})
    (Path(paths["purelib"]) / "others.pth").write_text(sysconfig.get_paths()["purelib"])
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    options = ("--no-deps", "--no-build-isolation")
    subprocess.run([*pip, "--python", place, "install", *options, *what], check=True)
    return Path(paths["scripts"])


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _fresh(tmp_path_factory.mktemp("fresh"), wheel)


def _run(*command: object, at: Path) -> subprocess.CompletedProcess[str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "RAY"))}
    return subprocess.run(
        [str(word) for word in command],
        cwd=at,
        env={**kept, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


IMPORTS = """
import importlib.util, pathlib, pkgutil, raycrt, sys
print(pathlib.Path(raycrt.__file__).parents[1])
print([name for name in ("tuning", "cluster", "tests") if importlib.util.find_spec(name)])
print(*(module.name for module in pkgutil.walk_packages(raycrt.__path__, "raycrt.")))
"""


def test_a_wheel_runs_from_an_empty_directory(installed: Path, tmp_path: Path) -> None:
    for program in ([installed / "raycrt"], [installed / "python", "-m", "raycrt"]):
        assert _run(*program, "--version", at=tmp_path).stdout == f"raycrt {__version__}\n"
    listed = _run(installed / "raycrt", "recipes", at=tmp_path).stdout
    assert all(name in listed for name in recipes.names())
    assert not list(tmp_path.iterdir())


def test_a_wheel_and_a_source_tree_have_the_same_modules(
    installed: Path, source: Path, tmp_path: Path
) -> None:
    """Whether that is installed or in PYTHONPATH."""
    editable = _fresh(tmp_path / "editable", "--editable", source)
    empty = tmp_path / "empty"
    empty.mkdir()
    of_wheel, of_editable = (
        _run(programs / "python", "-c", IMPORTS, at=empty).stdout.splitlines()
        for programs in (installed, editable)
    )
    of_path = _run(
        *("env", f"PYTHONPATH={source}", installed / "python", "-c", IMPORTS), at=empty
    ).stdout.splitlines()
    assert Path(of_wheel[0]).is_relative_to(installed.parent)
    assert of_editable[0] == of_path[0] == str(source)
    assert of_wheel[1] == of_editable[1] == "[]"
    assert of_wheel[2] == of_editable[2] == of_path[2]
    assert {"raycrt.tuning.search.driver", "raycrt.cluster.submit"} < set(of_wheel[2].split())


@pytest.mark.cluster
@pytest.mark.timeout(560)
def test_the_demo_of_a_wheel_runs_and_is_verified(installed: Path, tmp_path: Path) -> None:
    """Workers of Ray import the package by name."""
    settings = [word for key, value in TINY.items() for word in ("--set", f"{key}={value}")]
    done = _run(installed / "raycrt", "demo", *settings, at=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "certified (all classes)" in done.stdout
    assert _run(installed / "raycrt", "verify", "runs/demo", at=tmp_path).returncode == 0
