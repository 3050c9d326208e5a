"""Importances are those of optuna-dashboard, and said only where trials can tell."""

from __future__ import annotations

import io
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from rich.console import Console

from raycrt.tuning.analysis import importance, plots, study, summary, tables
from raycrt.tuning.analysis.agreement import TOO_FEW
from raycrt.tuning.analysis.importance import ENOUGH, Importance
from raycrt.tuning.analysis.study import TrialRecord
from raycrt.tuning.trials import space, store
from tests.tuning.analysis.test_study import record
from tests.tuning.driver import LANDSCAPE, drive

Params = dict[str, Any]


def draws(count: int) -> list[Params]:
    generator = np.random.default_rng(0)
    return [
        {
            "train.gamma": float(10 ** generator.uniform(-5, 0)),
            "train.learning_rate": float(10 ** generator.uniform(-4, 0)),
            "model.depth": int(generator.integers(2, 9)),
            "model.activation": str(generator.choice(["softplus", "sigmoid", "tanh"])),
        }
        for _ in range(count)
    ]


def finished(params: list[Params], values: list[float]) -> tuple[optuna.Study, list[TrialRecord]]:
    """A study of complete trials, and their records."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    known = optuna.create_study(direction="maximize")
    forms = space.optuna_space(LANDSCAPE)
    known.add_trials(
        [
            optuna.create_trial(params=p, distributions={k: forms[k] for k in p}, value=v)
            for p, v in zip(params, values, strict=True)
        ]
    )
    records = [
        record(n, v, 0.9, params=p) for n, (p, v) in enumerate(zip(params, values, strict=True))
    ]
    return known, records


def of(params: list[Params], values: list[float]) -> dict[str, Importance]:
    return importance.importances(*finished(params, values), LANDSCAPE)


def test_shares_are_those_of_optuna_and_its_dashboard() -> None:
    params = draws(15)
    known, records = finished(params, [p["model.depth"] / 10 for p in params])
    found = importance.importances(known, records, LANDSCAPE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optunas = optuna.importance.get_param_importances(known)
    assert {path: i.share for path, i in found.items()} == pytest.approx(optunas)
    pytest.importorskip("optuna_dashboard", reason="its importances are compared")
    from optuna_dashboard._importance import get_param_importance_from_trials_cache
    from optuna_dashboard._inmemory_cache import InMemoryCache

    shown = get_param_importance_from_trials_cache(
        InMemoryCache(), known._storage, known._study_id, 0, known.trials
    )
    dashboards = {entry["name"]: entry["importance"] for entry in shown}
    assert {path: i.share for path, i in found.items()} == pytest.approx(dashboards)


def test_a_choice_of_single_trials_tells_nothing(tmp_path: Path) -> None:
    activations = ["tanh"] * 7 + ["softplus", "sigmoid"]
    params = [{**p, "model.activation": a} for p, a in zip(draws(9), activations, strict=True)]
    found = of(params, [0.5 + n / 100 for n in range(9)])
    assert set(found) == set(LANDSCAPE.search.space)
    assert {(i.verdict, i.interval) for i in found.values()} == {(TOO_FEW, None)}


def test_evidence_is_five_in_the_best_tenth_and_five_of_two_values(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importance, "_RESAMPLES", 40)
    params = draws(41)
    values = [p["model.depth"] / 10 + n / 1e4 for n, p in enumerate(params)]
    found = of(params, values)
    assert next(iter(found)) == "model.depth"
    assert {i.verdict for i in found.values()} == {ENOUGH}
    for one in found.values():
        assert one.interval is not None
        low, high = one.interval
        assert 0 <= low <= high <= 1
    told = found["model.depth"].interval
    assert told is not None and told[0] > 1 / 4
    assert of(params, values) == found
    assert {i.verdict for i in of(params[:40], values[:40]).values()} == {TOO_FEW}
    rare = ["softplus"] * 4 + ["sigmoid"] * 4 + ["tanh"] * 33
    params = [{**p, "model.activation": a} for p, a in zip(params, rare, strict=True)]
    verdicts = {path: i.verdict for path, i in of(params, values).items()}
    assert verdicts.pop("model.activation") == TOO_FEW
    assert set(verdicts.values()) == {ENOUGH}


def test_what_never_varied_is_left_out_and_the_rest_keeps_its_share() -> None:
    params = [{**p, "model.activation": "tanh"} for p in draws(12)]
    values = [p["model.depth"] / 10 for p in params]
    known, records = finished(params, values)
    assert importance.left_out(records, LANDSCAPE) == {
        "model.activation": "tanh in every complete trial that has it"
    }
    found = importance.importances(known, records, LANDSCAPE)
    assert set(found) == set(LANDSCAPE.search.space) - {"model.activation"}
    assert sum(i.share for i in found.values()) <= 1


def test_there_is_none_where_all_are_alike() -> None:
    assert of(draws(9), [0.5] * 9) == {} == of([], [])


@pytest.mark.slow
def test_what_is_said_is_said_everywhere(tmp_path: Path) -> None:
    spec = LANDSCAPE.override({"search.algorithm": "random", "search.scheduler": "none"})
    drive(spec, tmp_path, lambda params, epoch: params["model.depth"] / 10, budget=27 * 9)
    spec.save(tmp_path)
    found = json.loads(summary.to_json(summary.of(tmp_path)))
    assert found["importance_evaluator"] == "PED-ANOVA"
    for entry in found["importances"].values():
        assert entry["interval"] is None and entry["verdict"] == "too few trials to tell"
    console = Console(file=io.StringIO(), width=120)
    tables.show(found, spec, console)
    said = " ".join(console.file.getvalue().split())
    assert said.count("too few trials to tell") >= len(found["importances"])
    assert "PED-ANOVA, as in optuna-dashboard" in said and "9 complete trials, 41 needed" in said
    [axes] = plots._importances(found["importances"], "PED-ANOVA").axes
    assert axes.get_title() == "without a bar: too few trials to tell" and not axes.lines
    assert not any(bar.get_width() for bar in axes.patches)
    record, trials = store.load_study(spec, tmp_path), study.load(tmp_path)[1]
    shares = importance.importances(record, trials, spec)
    assert {path: entry["share"] for path, entry in found["importances"].items()} == {
        path: one.share for path, one in shares.items()
    }
