"""The benchmarks run: each program at once, on next to nothing, so that none of them rots."""

import json
import math

import pytest
import torch

from raycrt.specs import ModelSpec
from tests.benchmarks import certification, scale, tightness, training
from tests.models import random_network

pytestmark = pytest.mark.slow


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Runs a program's `main` with arguments, on as many threads as there are."""
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)

    def run(program, *arguments):
        out = tmp_path / "found"
        monkeypatch.setattr("sys.argv", [program.__name__, "--out", str(out), *arguments])
        program.main()
        return out.read_text()

    return run


def _numbers(tree):
    """All numbers of nested dictionaries and lists."""
    if isinstance(tree, dict | list):
        parts = tree.values() if isinstance(tree, dict) else tree
        return [number for part in parts for number in _numbers(part)]
    return [tree] if isinstance(tree, int | float) else []


def test_certification(run, monkeypatch):
    tiny = certification.SPEC.override(
        {
            "model.width": 16,
            "train.epochs": 1,
            "train.radius": 0.3,
            "data.name": "digits",
            "data.limit": 150,
        }
    )
    networks = {"components": tiny.override({"train.components": 16}), "pixels": tiny}
    curves = {
        "width": ([8, 16], lambda v: (ModelSpec(width=v), 4)),
        "depth": ([2, 3], lambda v: (ModelSpec(width=8, depth=v), 4)),
        "classes": ([3, 5], lambda v: (ModelSpec(width=8), v)),
    }
    small = {"SPEC": tiny, "NETWORKS": networks, "CURVES": curves, "CURVE_ROWS": 10}
    small |= {"CURVE_NETWORKS": 2, "PAPER_ROWS": 3, "NEAR_ROWS": 10, "BATCH": 20, "REPEATS": 1}
    for name, value in small.items():
        monkeypatch.setattr(certification, name, value)
    found = json.loads(run(certification, "--rows", "30"))
    assert all(math.isfinite(number) for number in _numbers(found))
    assert set(found["cost"]) == {"rows", "networks", *curves}
    for name in networks:
        part = found[name]
        assert part["nearness"]["largest"] <= 1
        assert part["call_memory_mib"] >= 0
        paper = part["paper"]
        assert min(paper[key] for key in paper if "per_second" in key) > 0
        mean, theirs = paper["mean_radius_runner_up"], paper["paper_mean_radius_runner_up"]
        assert mean == pytest.approx(theirs, rel=1e-2)
        assert paper["rows_refuted"] == 0


def test_the_runner_up_alone_has_the_radius_that_it_has_among_all_classes():
    network, images = random_network(2, classes=6, gain=1.5), torch.randn(40, 5)
    certifier = certification.Certifier(network)
    one = certification.RunnerUpAlone.certifier(network, certifier.curvature)
    one, both = one(images).radius_runner_up, certifier(images).radius_runner_up
    torch.testing.assert_close(one, both, rtol=1e-4, atol=0)


def test_training(run, monkeypatch):
    small = {"model.width": 8, "train.batch_size": 64}
    conv = {**small, "model.channels": (2,), "model.width": 8}
    settings = {
        name: (recipe, {**changes, **(conv if recipe == "mnist-conv" else small)})
        for name, (recipe, changes) in training.SETTINGS.items()
    }
    for name, value in {"SETTINGS": settings, "DENSE_ROWS": 128, "CONVOLUTION_ROWS": 128}.items():
        monkeypatch.setattr(training, name, value)
    monkeypatch.setattr(torch, "compile", lambda module: module)
    found = json.loads(run(training, "--rounds", "1"))
    assert set(found["epoch_seconds"]) == set(settings)
    assert all(math.isfinite(number) and number >= 0 for number in _numbers(found))


def test_tightness(run, monkeypatch):
    monkeypatch.delenv("RAYCRT_DATA", raising=False)
    lines = run(tightness, "--depths", "2", "3", "--limit", "60", "--rows", "2").splitlines()
    rows = [line.split("|")[1:-1] for line in lines[2:]]
    assert len(rows) == 2 * (len(tightness.BOUNDS) + 2)
    m = {(row[0].strip(), row[2].strip()): float(row[3]) for row in rows}
    for depth in "23":
        best = m[depth, "minimum (region: global)"]
        assert best <= (1 + 1e-6) * min(m[depth, name] for name in tightness.BOUNDS)


@pytest.mark.cluster
def test_scale(run):
    found = json.loads(run(scale, "--rows", "60000"))
    assert all(math.isfinite(number) and number > 0 for number in _numbers(found))
