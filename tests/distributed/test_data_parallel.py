"""Gradients over several workers are those of one worker with the same global batch."""

import multiprocessing
import os

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from raycrt import data
from raycrt.specs import validate
from raycrt.training import loop
from raycrt.training.objectives import OBJECTIVES
from raycrt.training.options import effects

# 130 rows in batches of 64: the last batch has 2 rows, fewer than three workers.
SPEC = validate(
    {
        "model": {"width": 16, "depth": 3},
        "train": {
            "epochs": 1,
            "batch_size": 64,
            "radius": 0.3,
            "gamma": 1e-3,
            "precision": "float64",
        },
        "data": {"limit": 130},
    }
)

SPECS = {
    f"{objective}-{kind}": effects.override(
        SPEC, {"train.objective": objective, "model.channels": channels}
    )
    for objective in OBJECTIVES
    for kind, channels in {"dense": [], "convolutional": [4]}.items()
}
SPECS["normalised"] = SPEC.override(
    {
        "model": {
            "layers": [
                {"kind": "dense", "width": 9, "activation": "none"},
                {"kind": "batch_normalization", "activation": "tanh"},
            ]
        }
    }
)
# How many workers there are matters to no objective by itself.
BY_SIZE = {2: {"crt-all": SPEC.override({"train.epochs": 2})}, 3: SPECS}

# What each worker would import by itself.
PRELOADED = [__name__, "raycrt.distributed.training.worker", "sklearn.datasets", "torch._dynamo"]


def _worker(rank: int, size: int, folder: str) -> None:
    from raycrt.distributed.training.worker import data_parallel

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=size)
    split = data.load(SPEC.data).train
    for name, spec in BY_SIZE[size].items():
        metrics: list[dict[str, float]] = []
        network = loop.train(
            spec,
            split,
            workers=data_parallel(rank, size),
            report=lambda end, seen=metrics: seen.append(end.metrics),
        )
        torch.save((network.state_dict(), metrics), f"{folder}/{name}-{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3])
def test_workers_agree_with_one_worker(tmp_path, size):
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    multiprocessing.set_forkserver_preload(PRELOADED)
    mp.start_processes(_worker, args=(size, str(tmp_path)), nprocs=size, start_method="forkserver")
    split = data.load(SPEC.data).train
    assert len(split) % SPEC.train.batch_size == 2
    for name, spec in BY_SIZE[size].items():
        alone: list[dict[str, float]] = []
        one = loop.train(
            spec, split, report=lambda end, seen=alone: seen.append(end.metrics)
        ).state_dict()
        for rank in range(size):
            weights, metrics = torch.load(tmp_path / f"{name}-{rank}.pt", weights_only=True)
            for key, value in one.items():
                assert torch.allclose(weights[key], value, rtol=0, atol=1e-8), (name, key)
            assert metrics[-1]["loss"] == pytest.approx(alone[-1]["loss"], rel=1e-8)
