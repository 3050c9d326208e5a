"""Certification and verification of data that is larger than the memory they take."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import psutil
import pytest
import ray

from raycrt import data
from raycrt.bounds.curvature import margin_curvature
from raycrt.certification.table import storage
from raycrt.distributed import certification, verification
from raycrt.networks import checkpoint, network
from raycrt.specs import Spec, validate
from raycrt.verify import verify_run

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(1200)]

MIB = 2**20
ROWS, FEATURES = 250_000, 784
# Of anonymous memory in any process: about 350 MiB are libraries.
BOUND, DRIVER = 700 * MIB, 350 * MIB


@pytest.fixture(scope="module")
def small_store() -> Iterator[None]:
    """A local Ray whose object store holds 200 MiB."""
    ray.init(
        address="local",
        num_cpus=2,
        object_store_memory=200 * MIB,
        include_dashboard=False,
        log_to_driver=False,
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Spec]:
    """780 MB of inputs in a file, and a network for them."""
    home = tmp_path_factory.mktemp("large")
    (home / "data").mkdir()
    for name, rows in (("train", 10), ("test", ROWS)):
        inputs = np.lib.format.open_memmap(
            home / "data" / f"{name}-images.npy", "w+", np.float32, (rows, FEATURES)
        )
        inputs[:] = np.random.default_rng(0).normal(size=FEATURES).astype(np.float32)
        inputs[:, 0] = np.linspace(-3, 3, rows)
        np.save(home / "data" / f"{name}-labels.npy", np.arange(rows) % 2)
    spec = validate(
        {
            "data": {"source": "arrays", "path": str(home / "data")},
            "model": {"depth": 2, "width": 4, "activation": "tanh"},
            "certify": {"at": [0.1], "steps": 0},
            "run": {"workers": {"low": 1, "high": 2}, "cpus_per_worker": 0.5},
        }
    )
    spec = data.opened_for_test(spec)[0]
    model = network.build(spec.model, (FEATURES,), 2)
    checkpoint.save_model(home / "run" / "train", model, spec)
    return home / "run", spec


def anonymous(pid: int) -> int:
    """The memory of a process that is not that of a file."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Anonymous:"))


@contextmanager
def watched() -> Iterator[dict[str, int]]:
    """The largest anonymous memory of any process that this one has started, by its name, and what
    this one takes beyond what the tests before have left in it."""
    found: dict[str, int] = {}
    ended, ours = threading.Event(), psutil.Process()
    left = anonymous(ours.pid) - DRIVER

    def watch() -> None:
        while not ended.is_set():
            for process in (ours, *ours.children(recursive=True)):
                with suppress(psutil.Error, OSError):
                    own = left if process == ours else 0
                    name, memory = process.name(), anonymous(process.pid) - own
                    found[name] = max(found.get(name, 0), memory)
            time.sleep(0.2)

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        yield found
    finally:
        ended.set()
        watching.join()


def test_memory_does_not_grow_with_the_number_of_rows(small_store, made):
    run, spec = made
    model, _ = checkpoint.load_model(run / "train")
    with watched() as found:
        certification.certify(
            model,
            spec,
            data.test_rows(spec.data),
            run / "certificates",
            digest=checkpoint.weights_hash(model),
            curvature=margin_curvature(model),
        )
    assert storage.count(run / "certificates") == ROWS
    assert max(found.values()) < BOUND, {k: v // MIB for k, v in found.items()}
    with watched() as found:
        report = verify_run(
            run, check=lambda checker, files: verification.check_files(checker, files, workers=2)
        )
    assert report.sound, report.findings[:3]
    assert report.checked == ROWS
    assert max(found.values()) < BOUND, {k: v // MIB for k, v in found.items()}
