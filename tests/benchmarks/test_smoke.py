"""The benchmarks run: each program at once, on next to nothing, so that none of them rots."""

import json
import math
import os

import pytest
import torch

from raycrt.specs import ModelSpec
from tests.benchmarks import certification, crown, depth, gpu, scale, tightness, training
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


TINY = certification.SPEC.override(
    {
        "model.width": 16,
        "train.epochs": 1,
        "train.radius": 0.3,
        "data.name": "digits",
        "data.limit": 150,
    }
)


def test_certification(run, monkeypatch):
    tiny = TINY
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


@pytest.fixture
def settings(monkeypatch):
    """The settings of trainings, made small."""
    small = {"model.width": 8, "train.batch_size": 64}
    conv = {**small, "model.channels": (2,), "model.width": 8}
    settings = {
        name: (recipe, {**changes, **(conv if recipe == "mnist-conv" else small)})
        for name, (recipe, changes) in training.SETTINGS.items()
    }
    for name, value in {"SETTINGS": settings, "DENSE_ROWS": 128, "CONVOLUTION_ROWS": 128}.items():
        monkeypatch.setattr(training, name, value)
    return settings


def test_a_gpu(run, settings, monkeypatch, capsys):
    """The CPU in the place of both."""
    monkeypatch.setattr(gpu, "GPU", "cpu")
    monkeypatch.setattr(gpu, "gpu_name", lambda: "a GPU")
    monkeypatch.setattr(certification, "SPEC", TINY)
    monkeypatch.setattr(certification, "NETWORKS", {"pixels": TINY})
    found = json.loads(run(gpu, "--rows", "20", "--rounds", "1"))
    assert set(found["trained"]) == set(settings)
    assert found["certified"]["pixels"]["radii_apart"] == 0
    first, _, *rows = gpu.table(found).splitlines()
    assert first == f"| what | {gpu.cpu_name()}, {found['threads']} threads | a GPU | ratio |"
    assert len(rows) == 1 + len(settings)
    assert rows[0].startswith("| 20 images certified, pixels | ")
    assert capsys.readouterr().out.endswith("\n".join(rows) + "\n")


def test_without_a_gpu_there_is_one_sentence_and_exit_code_2(run, monkeypatch, capsys):
    monkeypatch.setattr(gpu, "gpu_name", lambda: None)
    with pytest.raises(SystemExit) as ended:
        run(gpu)
    assert ended.value.code == 2
    said = capsys.readouterr()
    assert said.err == "torch finds no GPU on this machine, so there is nothing to measure\n"
    assert not said.out


def test_training(run, settings, monkeypatch):
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
    for layers in "23":
        best = m[layers, "minimum (region: global)"]
        assert best <= (1 + 1e-6) * min(m[layers, name] for name in tightness.BOUNDS)


@pytest.mark.cluster
def test_scale(run):
    found = json.loads(run(scale, "--rows", "60000"))
    assert all(math.isfinite(number) and number > 0 for number in _numbers(found))


@pytest.mark.skipif(not crown.installed(), reason="auto_LiRPA is missing")
@pytest.mark.skipif("RAYCRT_DATA" not in os.environ, reason="MNIST is missing: RAYCRT_DATA")
def test_depth(run, monkeypatch):
    monkeypatch.setattr(depth, "NETWORKS", [(3, 20, "tanh")])
    found = json.loads(run(depth, "--images", "2", "--epochs", "1"))
    (network,) = found["networks"].values()
    assert network["radius_ratio"] > 1 and network["broken"] == 0


def test_depth_says_what_is_missing(run, monkeypatch, capsys):
    monkeypatch.setattr(crown, "installed", lambda: False)
    with pytest.raises(SystemExit):
        run(depth)
    assert "pip install" in capsys.readouterr().err
