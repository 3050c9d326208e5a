"""Who gets a GPU, and what never depends on one."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import torch

import raycrt
from raycrt.bounds.curvature import margin_curvature
from raycrt.bounds.spectral import eigenvalue_upper, weighted_gram_upper
from raycrt.certification.certifier import Certifier
from raycrt.distributed import room
from raycrt.distributed.training import process_group
from raycrt.errors import InvalidInput
from raycrt.networks.floating_point import plain_sums
from raycrt.networks.network import Network
from raycrt.specs import RunSpec
from raycrt.system import devices
from raycrt.tuning.trials import resources
from tests.gpu.pretended import Elsewhere
from tests.models import random_network


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two GPUs that torch finds."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.fixture
def none_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_a_process_computes_on_a_gpu_only_if_it_has_one(found: None) -> None:
    assert devices.of(0).type == "cpu"
    assert devices.of(0.5).type == devices.of(2).type == "cuda"
    assert devices.checked("cuda:1") == torch.device("cuda:1")
    with pytest.raises(InvalidInput, match="device='cuda:2', found=2"):
        devices.checked("cuda:2")


def test_a_gpu_that_torch_does_not_find_is_refused(none_found: None) -> None:
    assert devices.of(0).type == "cpu"
    with pytest.raises(InvalidInput, match=r"finds the GPU .*device='cuda', found=0"):
        devices.of(1)
    with pytest.raises(InvalidInput, match="finds the GPU"):
        raycrt.train("a recipe that is looked for later", device="cuda")


def test_gpus_that_ray_finds_alone_are_refused_before_workers_start(
    none_found: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = {"Alive": True, "Resources": {"CPU": 2.0, "GPU": 1.0, "memory": 1e9}}
    monkeypatch.setattr(ray, "nodes", lambda: [node])
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    run = RunSpec(workers=1, gpus_per_worker=0.5)
    with pytest.raises(InvalidInput, match="torch finds the GPU"):
        room.check(run)
    spec: Any = SimpleNamespace(run=run)
    with pytest.raises(InvalidInput, match="torch finds the GPU"):
        resources.check(spec)
    room.check(RunSpec(workers=1))
    # Workers may be on other nodes, with other drivers.
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    room.check(run)


@pytest.mark.parametrize(
    ("gpus", "backend"), [(0, "gloo"), (0.5, "gloo"), (1, "nccl"), (2, "nccl")]
)
def test_workers_that_may_share_a_gpu_meet_by_gloo(
    gpus: float, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    joined: list[str] = []

    class Group:
        def execute(self, work: Any) -> list[str]:
            return ["10.0.0.1", "10.0.0.2"]

        def execute_single(self, rank: int, work: Any, address: str) -> int:
            return 20000

        def get_resources_per_worker(self) -> dict[str, float]:
            return {"CPU": 1, **({"GPU": gpus} if gpus else {})}

        def execute_single_async(self, rank: int, work: Any, *given: Any) -> int:
            joined.append(given[3])
            return rank

    monkeypatch.setattr(ray, "get", lambda references: references)
    group = process_group.ProcessGroup()
    group.backend_cls().on_start(Group(), group)
    assert joined == [backend, backend]


def test_eigenvalues_are_proved_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    places: list[str] = []
    factorise = torch.linalg.cholesky_ex

    def noted(matrix: torch.Tensor) -> Any:
        places.append(matrix.device.type)
        return factorise(matrix)

    monkeypatch.setattr(torch.linalg, "cholesky_ex", noted)
    matrix = torch.randn(5, 3, dtype=torch.float64)
    there = Elsewhere(matrix)
    assert eigenvalue_upper(there.T @ there) == pytest.approx(eigenvalue_upper(matrix.T @ matrix))
    ones = Elsewhere(torch.ones(5, dtype=torch.float64))
    assert weighted_gram_upper(there, ones) > 0
    assert set(places) == {"cpu"} and len(places) >= 3


@pytest.mark.parametrize(
    ("gpu", "dtype", "enabled"),
    [
        (True, torch.float64, False),
        (True, torch.float32, True),
        (False, torch.float64, True),
    ],
)
def test_cudnn_convolves_no_float64(gpu: bool, dtype: torch.dtype, enabled: bool) -> None:
    like: Any = SimpleNamespace(is_cuda=gpu, dtype=dtype)
    for _ in range(2):
        with plain_sums(like):
            assert torch.backends.cudnn.enabled is enabled
    assert torch.backends.cudnn.enabled is True


@pytest.mark.parametrize("name", ["CUBLAS_EMULATE_DOUBLE_PRECISION", "NVIDIA_TF32_OVERRIDE"])
def test_certificates_refuse_a_gpu_whose_products_are_emulated(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = random_network()
    curvature = margin_curvature(network)
    monkeypatch.setenv(name, "1")
    Certifier(network, steps=0)
    monkeypatch.setattr(Network, "device", torch.device("cuda"))
    for prove in (margin_curvature, partial(Certifier, curvature=curvature, steps=0)):
        with pytest.raises(InvalidInput, match=f"products on a GPU .*{name}='1'"):
            prove(network)
    monkeypatch.setenv(name, "0")
    Certifier(network, steps=0)
