"""The checker needs its base dependencies alone; what else is missing is named with its extra."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from raycrt import data
from raycrt.evidence.bundle import pack
from raycrt.verify import verify_run
from tests.data.laws import part
from tests.data.stores import STORES
from tests.verify.runs import spec_of, write_run

# A process in which what only training needs cannot be imported.
_ALONE = """
import sys
class Missing:
    names = {"PIL", "cmaes", "filelock", "matplotlib", "optuna", "pandas", "ray", "scipy",
             "sklearn", "sqlalchemy", "tensorboard", "torch", "torchvision"}
    def find_spec(self, name, path=None, target=None):
        if name in self.names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Missing())
from raycrt.cli.main import main
main()
"""


def alone(*words: object) -> subprocess.CompletedProcess[str]:
    """`raycrt` with `words`, without the packages of the extra `train`."""
    command = [sys.executable, "-c", _ALONE, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.mark.slow
def test_a_run_is_verified_without_what_training_needs(tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    stored = STORES["npy"].spec(tmp_path / "rows", {"train": part(60)})
    spec = data.described(spec_of(name="gelu").override({"data": stored.data.model_dump()}))
    run = write_run(tmp_path / "run", spec)
    done = alone("verify", run)
    assert done.returncode == 0, done.stderr
    assert "12 rows checked against 12 images of arrays rows: each is proved." in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    "words", [("train",), ("search",), ("report", "RUN"), ("data", "digits"), ("demo",)]
)
def test_a_command_that_needs_more_names_the_extra(tmp_path: Path, words: tuple[str, ...]) -> None:
    run = write_run(tmp_path, spec_of(rows=3))
    done = alone(*(run if word == "RUN" else word for word in words))
    assert done.returncode == 2 and "pip install 'raycrt[train]'" in done.stderr, done
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_bundle_is_verified_without_what_training_needs(bundle: Path) -> None:
    done = alone("verify", bundle)
    assert done.returncode == 0, done.stderr
    assert "12 rows checked against 12 images of arrays rows: each is proved." in done.stdout


@pytest.mark.slow
def test_a_named_set_of_the_reader_is_compared_with_the_hashes(tmp_path: Path) -> None:
    if not os.environ.get(data.DIRECTORY_VARIABLE):
        pytest.skip(f"needs MNIST in {data.DIRECTORY_VARIABLE}")
    run = write_run(
        tmp_path / "run", spec_of(rows=5, width=8).override({"data.name": "mnist", "data.limit": 5})
    )
    pack(run, tmp_path / "mnist.zip", verify=verify_run)
    done = alone("verify", tmp_path / "mnist.zip")
    assert done.returncode == 0, done.stderr
    assert "5 rows checked against 5 images of mnist: each is proved." in done.stdout


@pytest.mark.slow
def test_a_name_that_needs_more_names_the_extra() -> None:
    code = _ALONE.replace(
        "from raycrt.cli.main import main\nmain()", "import raycrt; raycrt.certify"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    last = done.stderr.strip().splitlines()[-1]
    assert "raycrt.certify: this needs torch" in last and "pip install 'raycrt[train]'" in last
