"""Fixtures for the whole suite.

The process that hands tests to others reads this file too, so what is large is imported by the
fixture that needs it.
"""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path

import pytest

Shell = Callable[..., str]

pytest_plugins = ["tests.browser"]

TINY = """
model: {depth: 2, width: 16, activation: tanh}
train: {objective: crt-all, radius: 0.5, gamma: 0.001, epochs: 3, batch_size: 128,
        learning_rate: 0.01, targets: 1}
data: {name: digits, validation: 0.2}
certify: {at: [0.1, 0.5], steps: 10, batch_size: 120}
run: {workers: 1}
search:
  radius: 0.1
  trials: 5
  rungs: [1]
  rows: 100
  finalists: 1
  seeds: 2
  points: [{train.learning_rate: 1.0e+30}]
  space:
    model.depth: {low: 2, high: 3}
    model.activation: {choices: [softplus, tanh]}
    train.gamma: {low: 0.0001, high: 0.1, log: true}
    train.learning_rate: {choices: [0.01, 0.003, 1.0e+30]}
"""


@pytest.fixture(scope="session", autouse=True)
def digits_are_read_once() -> Iterator[None]:
    """scikit-learn parses text for as long as a small test runs."""
    import sklearn.datasets

    read = cache(sklearn.datasets.load_digits)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sklearn.datasets, "load_digits", lambda: copy.deepcopy(read()))
        yield


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Several processes share the cores."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """What a test draws does not depend on which ran before it.

    `torch.manual_seed` also formats the stack three times for accelerators that are not there.
    """
    import torch

    torch.default_generator.manual_seed(0)


@pytest.fixture
def solved(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many margins each call of the solver gets."""
    from raycrt.certification.targets import Targets

    counts: list[int] = []
    solve = Targets.solve
    monkeypatch.setattr(
        Targets,
        "solve",
        lambda self, m, row, *a: counts.append(len(row)) or solve(self, m, row, *a),
    )
    return counts


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Shell:
    """Runs `raycrt` with words as in a shell, in this process: what it says, by exit code 0, or
    what it says on standard error by another one."""
    from raycrt.cli import main as cli

    def run(*words: object, code: int = 0) -> str:
        monkeypatch.setattr(sys, "argv", ["raycrt", *map(str, words)])
        monkeypatch.setattr("raycrt.system.pipes.outlive_readers", lambda: None)
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capfd.readouterr()
        assert (ended.value.code or 0) == code, said
        return said.err if code else said.out

    return run


@pytest.fixture(scope="session")
def object_store() -> Iterator[str]:
    """The URI of a bucket on an object store, whose credentials are in the environment."""
    from tests.stores import s3

    with s3() as bucket:
        yield bucket


@pytest.fixture(scope="session")
def _rays() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture(scope="module")
def local_ray(_rays: ExitStack) -> None:
    """A Ray of two CPUs that this process has joined: started by the first module that needs it."""
    import ray

    from raycrt.distributed.session import session

    if not ray.is_initialized():
        _rays.enter_context(session(2))


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a tiny finished `raycrt demo`; what it printed is in `demo.log` there.

    Its trial 1 has a learning rate that makes the loss infinite.
    """
    out = tmp_path_factory.mktemp("finished") / "run"
    recipe = out.parent / "tiny.yaml"
    recipe.write_text(TINY)
    done = subprocess.run(
        [Path(sys.executable).parent / "raycrt", "demo", "--recipe", recipe, "--out", out],
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (out / "demo.log").write_text(done.stdout)
    return out


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certified run of three classes and 12 test rows; its data is in `rows` beside it."""
    from raycrt import data
    from tests.data.laws import part
    from tests.data.stores import STORES
    from tests.verify.runs import spec_of, write_run

    place = tmp_path_factory.mktemp("small")
    (place / "rows").mkdir()
    stored = STORES["npy"].spec(place / "rows", {"train": part(60)})
    spec = spec_of(width=8, name="gelu").override({"data": stored.data.model_dump()})
    return write_run(place / "run", data.described(spec))


@pytest.fixture(scope="session")
def bundle(small_run: Path) -> Path:
    """The bundle of `small_run` with its data."""
    return _packed(small_run, "whole.zip", with_data=True, license="mit")


@pytest.fixture(scope="session")
def bare_bundle(small_run: Path) -> Path:
    """The bundle of `small_run` without data."""
    return _packed(small_run, "bare.zip")


def _packed(run: Path, name: str, **options: object) -> Path:
    from raycrt.evidence.bundle import pack
    from raycrt.verify import verify_run

    pack(run, run.parent / name, verify=verify_run, **options)
    return run.parent / name
