"""What a trial is worth: at a rung, at its end, at one radius and at several."""

from __future__ import annotations

from pathlib import Path
from statistics import mean
from typing import Any

import pytest
import torch

from raycrt import InvalidInput, data
from raycrt.bounds.curvature import margin_curvature
from raycrt.certification.table import storage
from raycrt.distributed import certification
from raycrt.evaluation.assessment import assess
from raycrt.evaluation.tally import summarise
from raycrt.networks import checkpoint
from raycrt.specs import Spec, validate
from raycrt.training import loop
from raycrt.training.loop import EpochEnd
from raycrt.tuning.trials import process, store
from raycrt.tuning.trials.trial import Measurement, evaluate, judge, measure, nothing_certified
from tests.distributed.inprocess import OfArrays, work_here
from tests.models import random_network

SPEC = validate(
    {
        "model": {"width": 16},
        "train": {"epochs": 3, "radius": 0.4, "learning_rate": 0.01, "batch_size": 64},
        "data": {"limit": 400, "validation": 0.3},
        "search": {"radius": [0.1, 0.2, 0.4], "rungs": [1, 2], "rows": 100, "rung_rows": 40},
    }
)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def reports(spec: Spec) -> list[tuple[Measurement, EpochEnd]]:
    found: list[tuple[Measurement, EpochEnd]] = []
    evaluate(spec, data.load(spec.data), report=lambda m, end: found.append((m, end)))
    return found


def test_a_trial_that_needs_more_memory_than_there_is_fails_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[dict[str, Any]] = []
    monkeypatch.setattr(process.tune, "report", told.append)
    monkeypatch.setenv("TUNE_FUNCTION_THREAD_TIMEOUT_S", "1")
    spec = SPEC.override({"model.width": 2**20, "model.depth": 3})
    process.run({process.NUMBER: 0}, tree=spec.model_dump(mode="json"), home=str(tmp_path))
    assert [found["epoch"] for found in told] == [0]
    assert "can't allocate memory" in told[0][store.REASON]


def test_a_trial_goes_on_from_the_state_of_its_last_rung_and_not_from_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNE_FUNCTION_THREAD_TIMEOUT_S", "1")
    dies_after: int | None = None
    told: list[dict[str, Any]] = []

    def report(measured: dict[str, Any]) -> None:
        told.append({name: value for name, value in measured.items() if name != "seconds"})
        if measured["epoch"] == dies_after:
            raise SystemExit

    monkeypatch.setattr(process.tune, "report", report)

    def run(number: int) -> list[dict[str, Any]]:
        told.clear()
        config = {process.NUMBER: number}
        process.run(config, tree=SPEC.model_dump(mode="json"), home=str(tmp_path))
        return list(told)

    whole = run(0)
    dies_after = 1
    with pytest.raises(SystemExit):
        run(1)
    dies_after = None
    trained: list[int] = []
    inner = loop.train

    def train(spec: Spec, split: data.Split, *, report: Any, **options: Any) -> Any:
        def noted(end: EpochEnd) -> None:
            trained.append(end.epoch)
            report(end)

        return inner(spec, split, report=noted, **options)

    monkeypatch.setattr(loop, "train", train)
    assert run(1) == whole[1:]
    assert trained == [2, 3]


@pytest.mark.parametrize(("gpus", "device"), [(0, "cpu"), (0.5, "cuda")])
def test_a_trial_without_gpus_takes_none_though_there_is_one(
    gpus: float, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[str] = []

    def train(*given: Any, device: torch.device, **options: Any) -> None:
        taken.append(device.type)
        raise SystemExit

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(loop, "train", train)
    with pytest.raises(SystemExit):
        evaluate(SPEC.override({"run.gpus_per_worker": gpus}), data.load(SPEC.data))
    assert taken == [device]


def test_rungs_certify_fewer_rows_than_the_end() -> None:
    assert [(m.epoch, m.rows) for m, _ in reports(SPEC)] == [(1, 40), (2, 40), (3, 100)]
    whole = SPEC.override({"search.rung_rows": None})
    assert [(m.epoch, m.rows) for m, _ in reports(whole)] == [(1, 100), (2, 100), (3, 100)]


def test_a_rung_is_a_lower_bound_of_what_all_steps_prove_of_its_rows() -> None:
    validation = data.load(SPEC.data).validation
    rungs: list[int] = []

    def at_rung(measured: Measurement, end: EpochEnd) -> None:
        if measured.epoch not in SPEC.search.rungs:
            return
        rows = validation.take(slice(40))
        full = measure(end.network, rows, SPEC, steps=SPEC.certify.steps, epoch=end.epoch)
        assert measured.clean == full.clean
        for radius, share in measured.certified_at.items():
            assert share <= full.certified_at[radius]
        assert measured.mean_radius <= full.mean_radius
        rungs.append(end.epoch)

    evaluate(SPEC, data.load(SPEC.data), report=at_rung)
    assert rungs == [1, 2]


@pytest.mark.slow
@pytest.mark.parametrize("certify", [{"region": "local"}, {"deployment": "float32"}])
def test_a_search_measures_what_is_certified_later(
    certify: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same shares of the same rows, though the report states other radii beside them."""
    stated = {"at": [0.6, 0.8, 1.0], "batch_size": 8, "steps": 20}
    spec = SPEC.override({"search.radius": [0.6, 1.0], "certify": {**stated, **certify}})
    network = random_network(4, features=64, width=16, classes=10, gain=1.5, seed=1)
    with torch.no_grad():
        # What float32 rounds to about this.
        network.layers[-1].bias += 1e5 if "deployment" in certify else 0
        images = data.load(spec.data).validation.images[:8]
        rows = data.Split(images=images, labels=network(images).argmax(1))
    measured = measure(network, rows, spec, steps=20, epoch=1)
    work_here(monkeypatch)
    digest, curvature = checkpoint.weights_hash(network), margin_curvature(network)
    certification.certify(
        network, spec, OfArrays(rows), tmp_path, digest=digest, curvature=curvature
    )
    found = summarise(storage.read(tmp_path)[0], spec.certify.at)
    assert measured.clean == found.clean == 1
    assert measured.certified_at == pytest.approx({r: found.certified[r] for r in (0.6, 1.0)})
    assessed = assess(network, rows, spec.certify)
    assert {r: assessed[f"certified_{r:g}"] for r in stated["at"]} == pytest.approx(found.certified)
    plain = spec.override({"certify": stated})
    assert measure(network, rows, plain, steps=20, epoch=1).certified != measured.certified


def test_of_several_radii_the_mean_counts() -> None:
    [*_, (last, end)] = reports(SPEC)
    assert list(last.certified_at) == [0.1, 0.2, 0.4]
    assert last.certified == pytest.approx(mean(last.certified_at.values()))
    assert last.clean >= last.certified_at[0.1] > last.certified_at[0.4]
    told = last.as_dict()
    assert told["certified_at/0.2"] == last.certified_at[0.2]
    one = judge(end, SPEC.override({"search.radius": 0.2}), data.load(SPEC.data).validation)
    assert one is not None
    assert one.certified == last.certified_at[0.2]


def test_between_rungs_nothing_is_measured() -> None:
    [*_, (_, end)] = reports(SPEC)
    later = SPEC.override({"train.epochs": 9})
    assert judge(end, later, data.load(SPEC.data).validation) is None


def test_a_failed_training_is_worth_nothing_at_each_radius() -> None:
    assert nothing_certified(SPEC, 10).as_dict()["certified_at/0.4"] == 0


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"search.radius": 0.0}, "search.radius: must be a positive number"),
        ({"search.radius": []}, "search.radius: must be a positive number"),
        ({"search.radius": [0.5, 0.5]}, "strictly increasing"),
        ({"search.radius": [-0.5, 0.5]}, "search.radius: must be a positive number"),
        ({"search.rung_rows": 101}, "rung_rows must not exceed rows"),
    ],
)
def test_impossible_measures_are_refused(values: dict[str, Any], match: str) -> None:
    with pytest.raises(InvalidInput, match=match):
        SPEC.override(values)
