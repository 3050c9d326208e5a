"""Workers, actors and trials of Ray on a real GPU: one has it alone, or several share it."""

from __future__ import annotations

from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import pytest
import torch
import yaml
from rich.console import Console

from raycrt import data
from raycrt.certification.table import storage
from raycrt.distributed import stages
from raycrt.distributed.session import session
from raycrt.distributed.training import train as training
from raycrt.networks import checkpoint
from raycrt.specs import Spec, validate
from raycrt.training import loop
from raycrt.training.loop import EpochEnd, Metrics
from raycrt.tuning.analysis import study
from raycrt.tuning.search import driver
from raycrt.tuning.trials import resources
from raycrt.verify import verify_run
from tests.conftest import TINY
from tests.data.laws import part
from tests.data.stores import STORES

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.cluster,
    pytest.mark.slow,
    pytest.mark.timeout(560),
]

SPEC = validate(yaml.safe_load(TINY)).override(
    {
        "train.precision": "float64",
        "data.limit": 200,
        "run": {"workers": 1, "cpus_per_worker": 0.5, "gpus_per_worker": 1},
    }
)


@pytest.fixture(scope="module")
def ray_running() -> Iterator[None]:
    with session(2):
        yield


def assert_near(one: torch.nn.Module, other: torch.nn.Module) -> None:
    for key, value in one.state_dict().items():
        torch.testing.assert_close(other.state_dict()[key], value, rtol=1e-5, atol=1e-5)


def where(end: EpochEnd) -> Metrics:
    """Whether an epoch was computed on a GPU."""
    return {"on_gpu": float(end.network.device.type == "cuda")}


@pytest.mark.parametrize(
    ("workers", "stream"), [(1, False), (2, False), (2, True)], ids=["alone", "two", "streamed"]
)
def test_workers_train_the_network_of_the_cpu(
    ray_running: None, tmp_path: Path, workers: int, stream: bool
) -> None:
    """Two workers share the GPU, which NCCL would refuse."""
    (tmp_path / "rows").mkdir()
    stored = STORES["npy"].spec(tmp_path / "rows", {"train": part(120)})
    spec = data.described(SPEC.override({"data": stored.data.model_dump()}))
    spec = spec.override({"run.workers": workers, "run.gpus_per_worker": 1 / workers})
    seen: list[Metrics] = []
    network = training.fit(
        spec.override({"run.stream": stream}),
        tmp_path / "run",
        measure=where,
        watch=lambda epoch, found: seen.append(found),
    )
    assert [found["on_gpu"] for found in seen] == [1.0] * spec.train.epochs
    assert_near(loop.train(spec, data.load(spec.data).fit), network)


def test_a_training_of_the_gpu_goes_on_on_the_cpu(ray_running: None, tmp_path: Path) -> None:
    whole = loop.train(SPEC, data.load(SPEC.data).fit)
    loop.train(
        SPEC,
        data.load(SPEC.data).fit,
        device="cuda",
        report=lambda end: checkpoint.save_state(tmp_path, end.state()) if end.epoch == 1 else None,
    )
    state = checkpoint.load_state(tmp_path)
    assert_near(whole, loop.train(SPEC, data.load(SPEC.data).fit, state=state))


def certified(spec: Spec, network: loop.Network, home: Path) -> list[float]:
    checkpoint.save_model(home / "train", network, spec)
    stages.certify(spec, network, home / "certificates")
    report = verify_run(home)
    assert report.sound, report.findings[:3]
    return storage.read(home / "certificates")[0]["radius"].to_pylist()


@pytest.mark.parametrize("actors", [1, 2])
def test_actors_certify_what_the_cpu_does_and_the_checker_proves(
    ray_running: None, tmp_path: Path, actors: int
) -> None:
    network = loop.train(SPEC, data.load(SPEC.data).fit).requires_grad_(False)
    shared = {"run.workers": actors, "run.gpus_per_worker": 1 / actors}
    there = certified(SPEC.override(shared), network, tmp_path / "gpu")
    here = certified(SPEC.override({"run.gpus_per_worker": 0}), network, tmp_path / "cpu")
    assert there == pytest.approx(here, rel=1e-5, abs=1e-7)


def test_two_trials_share_one_gpu(ray_running: None, tmp_path: Path) -> None:
    if torch.cuda.device_count() > 1:
        pytest.skip("several GPUs have room for more trials")
    spec = SPEC.override(
        {"run.gpus_per_worker": 0.5, "train.precision": "float32", "search.points": []}
    )
    spec = spec.override({"search.trials": 3, "search.finalists": 0, "search.seeds": 1})
    assert resources.trials(spec) == 2
    driver.run(spec, tmp_path, console=Console(file=StringIO()))
    rows = (tmp_path / study.TRIALS).read_text().splitlines()
    assert len(rows) == 1 + spec.search.trials
