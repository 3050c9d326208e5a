"""What is learned from trials: intervals, fronts, agreement, tables, and bad runs."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from scipy.stats import binomtest

from raycrt import InvalidInput
from raycrt.evaluation.intervals import wilson
from raycrt.specs import Spec, validate
from raycrt.tuning import cli
from raycrt.tuning.analysis import landscape, plots, study, summary, tables
from raycrt.tuning.analysis.study import TrialRecord
from raycrt.tuning.search import driver
from tests.tuning.driver import LANDSCAPE, drive

PICTURES = ["history", "importances", "pareto", "slices", "contour"]


def record(number: int, certified: float, clean: float, **more: Any) -> TrialRecord:
    values: dict[str, Any] = {
        "number": number,
        "state": "complete",
        "reason": "",
        "params": {},
        "epochs": 27,
        "certified": certified,
        "clean": clean,
        "mean_radius": certified,
        "curvature": 1.0,
        "parameters": 10,
        "rows": 100,
        "seconds": 1.0,
        "feasible": True,
    }
    return TrialRecord(**{**values, **more})


@pytest.mark.parametrize(("hits", "rows"), [(0, 10), (7, 10), (250, 359), (359, 359)])
def test_the_interval_is_wilsons(hits: int, rows: int) -> None:
    expected = binomtest(hits, rows).proportion_ci(0.95, method="wilson")
    assert wilson(hits / rows, rows) == pytest.approx((expected.low, expected.high))


def test_the_front_holds_what_nothing_beats_in_both() -> None:
    trials = [record(0, 0.5, 0.9), record(1, 0.6, 0.8), record(2, 0.5, 0.8), record(3, 0.4, 0.95)]
    trials.append(record(4, 0.9, 0.99, state="pruned"))
    assert [trial.number for trial in study.pareto(trials)] == [1, 0, 3]


def test_a_trial_that_breaks_a_constraint_neither_is_on_the_front_nor_hides_others() -> None:
    trials = [record(0, 0.5, 0.9), record(1, 0.6, 0.95, feasible=False), record(2, 0.4, 0.8)]
    assert [trial.number for trial in study.pareto(trials)] == [0]


def test_the_ranking_leaves_out_what_was_stopped_or_is_not_allowed() -> None:
    trials = [
        record(0, 0.5, 0.9),
        record(1, 0.9, 0.9, state="pruned"),
        record(2, 0.8, 0.9, feasible=False),
        record(3, 0.5, 0.9),
        record(4, 0.6, 0.9),
    ]
    assert [trial.number for trial in study.ranking(trials)] == [4, 0, 3]


def test_the_history_knows_each_complete_trial_and_the_best_up_to_it(tmp_path: Path) -> None:
    trials = [record(0, 0.5, 0.9), record(1, 0.4, 0.9), record(2, 0.9, 0.9, state="pruned")]
    trials.append(record(3, 0.6, 0.9))
    assert [(t.number, best) for t, best in study.history(trials)] == [(0, 0.5), (1, 0.5), (3, 0.6)]
    assert study.history([]) == []


def test_what_did_not_vary_is_named_not_dropped(tmp_path: Path) -> None:
    def value(params: dict[str, Any], epoch: int) -> float:
        return params["model.depth"] / 10

    more = {"model.beta": {"low": 0.5, "high": 10.0}, "train.batch_size": {"choices": [512]}}
    space = {**LANDSCAPE.model_dump(mode="json")["search"]["space"], **more}
    spec = LANDSCAPE.override(
        {"search.space": space, "search.algorithm": "random", "search.scheduler": "none"}
    )
    drive(spec, tmp_path, value, budget=27 * 12)
    spec.save(tmp_path)
    found = summary.of(tmp_path)
    assert found["importances_left_out"] == {
        "train.batch_size": "512 in every complete trial that has it"
    }
    assert set(found["importances"]) == {*LANDSCAPE.search.space, "model.beta"}
    assert found["cost"]["epochs"] == 27 * 12
    assert found["history"][-1]["best"] == found["best"][0]["certified"]
    console = Console(file=io.StringIO(), width=200)
    tables.show(found, spec, console)
    assert "left out: train.batch_size, 512 in every" in console.file.getvalue()


def test_each_parameter_is_looked_at_alone_where_trials_lie() -> None:
    def at(number: int, gamma: float, share: float, **more: Any) -> TrialRecord:
        return record(number, share, 0.9, params={"train.gamma": gamma, "model.depth": 3}, **more)

    trials = [at(0, 1e-5, 0.2), at(1, 2e-5, 0.4), at(2, 1.0, 0.7), at(3, 1.0, 0.9, state="pruned")]
    found = landscape.marginals(trials, LANDSCAPE)
    low, high = found["train.gamma"]
    assert (low["cell"], low["trials"], low["best"]) == ("1e-05 - 0.000464", 2, 0.4)
    assert low["mean"] == pytest.approx(0.3)
    assert low["mean_interval"] == pytest.approx(wilson(0.3, trials[0].rows))
    assert low["best_interval"] == list(wilson(0.4, trials[1].rows))
    assert (high["trials"], high["best"]) == (1, 0.7)
    assert [cell["trials"] for cell in found["model.depth"]] == [3]
    assert found["model.activation"] == []


def test_what_pruning_saved_is_counted_at_the_pace_of_each_trial() -> None:
    trials = [
        record(0, 0.5, 0.9, seconds=27.0),
        record(1, 0.2, 0.9, state="pruned", epochs=9, seconds=18.0),
        record(2, 0.0, 0.0, state="pruned", epochs=0, seconds=0.0),
    ]
    assert study.saved_epochs(trials, LANDSCAPE) == 18 + 27
    assert study.saved_seconds(trials, LANDSCAPE) == 2.0 * 18


def test_the_contour_is_the_mean_of_the_complete_trials_in_each_cell() -> None:
    def at(number: int, gamma: float, depth: int, share: float, **more: Any) -> TrialRecord:
        return record(
            number, share, 0.9, params={"train.gamma": gamma, "model.depth": depth}, **more
        )

    trials = [at(0, 1e-5, 2, 0.2), at(1, 1e-5, 2, 0.4), at(2, 1.0, 8, 0.7)]
    trials.append(at(3, 1.0, 8, 0.1, state="pruned"))
    found = landscape.contour(trials, LANDSCAPE, {})
    assert found is not None
    assert (found["x"], found["y"]) == ("train.gamma", "model.depth")
    assert found["y_cells"] == ["2", "3", "4", "5", "6", "7", "8"]
    assert found["certified"][0][0] == pytest.approx(0.3)
    assert found["trials"][0][0] == 2
    assert found["certified"][6][5] == 0.7
    assert found["certified"][3][3] is None
    assert sum(map(sum, found["trials"])) == 3


def test_without_gamma_and_depth_the_contour_is_of_what_matters_most() -> None:
    domains = {
        "train.warm_up": {"low": 0.0, "high": 0.5},
        "train.batch_size": {"choices": [4, 512]},
    }
    spec = validate({"search": {"space": {**domains, "train.ramp": {"low": 0, "high": 1}}}})
    params = {"train.warm_up": 0.0, "train.batch_size": 512, "train.ramp": 0.25}
    found = landscape.contour(
        [record(0, 0.5, 0.9, params=params)], spec, {"train.ramp": 0.6, "train.batch_size": 0.3}
    )
    assert found is not None
    assert (found["x"], found["y"]) == ("train.ramp", "train.batch_size")
    assert found["trials"] == [[0] * 6, [0, 1, 0, 0, 0, 0]]
    one = spec.override({"search.space": {"train.ramp": {"low": 0, "high": 1}}})
    assert landscape.contour([], one, {}) is None


@pytest.mark.slow
def test_the_pictures_and_slices_show_the_trials(tmp_path: Path) -> None:
    spec = LANDSCAPE.override({"search.algorithm": "random", "search.scheduler": "none"})
    drive(spec, tmp_path, lambda params, epoch: params["model.depth"] / 10, budget=27 * 8)
    spec.save(tmp_path)
    found = summary.of(tmp_path)
    assert [len(points) for points in found["slices"].values()] == [8] * 4
    for point in found["slices"]["model.depth"]:
        assert point["certified"] == pytest.approx(point["value"] / 10)
    written = plots.draw(found, spec, tmp_path / "plots")
    assert [file.stem for file in written] == PICTURES
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in written)


def test_axes_hold_the_intervals_of_what_they_show() -> None:
    shares = [0.8043, 0.8021, 0.8070]
    steps = [
        {
            "number": n,
            "certified": s,
            "interval": wilson(s, 4800),
            "best": max(shares[: n + 1]),
        }
        for n, s in enumerate(shares)
    ]
    low, high = plots._range(steps)
    assert high - low > 2
    [axes] = plots._history(steps, "certified, %").axes
    assert axes.get_ylim()[0] <= low and axes.get_ylim()[1] >= high
    [points] = axes.containers
    assert points.lines[0].get_ydata() == pytest.approx([100 * share for share in shares])
    front = [{**s, "clean": 0.98, "clean_interval": wilson(0.98, 4800)} for s in steps]
    [axes] = plots._pareto(front, "certified, %").axes
    assert axes.get_ylim()[0] <= low and axes.get_ylim()[1] >= high
    assert axes.get_xlim()[0] <= 100 * wilson(0.98, 4800)[0]


@pytest.mark.slow
def test_files_are_written_before_anything_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drive(LANDSCAPE, tmp_path, lambda params, epoch: epoch / 100, budget=27)
    LANDSCAPE.save(tmp_path)
    (tmp_path / study.BEST).write_text(LANDSCAPE.to_yaml())

    def closed(*_: Any) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(tables, "show", closed)
    with pytest.raises(BrokenPipeError):
        cli.study([tmp_path], export=tmp_path / "winner.yaml")
    assert (tmp_path / "study" / "history.png").is_file()
    assert (tmp_path / "study" / "study.json").is_file() and (tmp_path / "winner.yaml").is_file()


@pytest.mark.slow
def test_the_command_prints_and_writes_all_of_it_unasked(tmp_path: Path, capfd: Any) -> None:
    spec = LANDSCAPE.override({"search.algorithm": "random", "search.scheduler": "none"})
    home = tmp_path / "search"
    drive(spec, home, lambda params, epoch: params["model.depth"] / 10, budget=27 * 8)
    spec.save(home)
    cli.study([tmp_path])
    said = capfd.readouterr().out
    for title in ("best trials", "Pareto", "by parameter", "history", "cost per trial"):
        assert title in said
    files = [Path(line) for line in said.splitlines() if line.startswith(str(tmp_path))]
    assert [file.name for file in files] == [
        "study.html",
        "study.json",
        *(f"{name}.png" for name in PICTURES),
    ]
    assert {file.parent for file in files} == {tmp_path / "study"}
    cli.study([tmp_path], as_json=True, out=tmp_path / "there")
    said = capfd.readouterr().out
    found = json.loads(said)
    assert (tmp_path / "there" / "study.json").read_text() == said.rstrip("\n") + "\n"
    assert [trial["epochs"] for trial in found["cost"]["trials"]] == [27] * 8


@pytest.mark.parametrize("option", ["out", "export"])
def test_a_place_that_takes_no_files_is_named_before_anything_is_said(
    tmp_path: Path, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(__file__).parents[3] / "docs" / "results" / "search-mnist"
    (tmp_path / "file").touch()
    places = {"out": tmp_path / "study", option: tmp_path / "file" / "below"}
    with pytest.raises(InvalidInput, match="must be a directory that takes files"):
        cli.study([run], as_json=True, **places)
    assert not capsys.readouterr().out


def test_the_table_can_be_read_back(tmp_path: Path) -> None:
    params = {"model.activation": "tanh", "train.gamma": 0.1}
    trials = [record(0, 0.5, 0.9, params=params), record(1, 0, 0, state="failed", reason="a, b")]
    study.write_csv(tmp_path / "trials.csv", trials, LANDSCAPE)
    rows = list(csv.DictReader((tmp_path / "trials.csv").read_text().splitlines()))
    assert [row["number"] for row in rows] == ["0", "1"]
    assert rows[0]["model.activation"] == "tanh"
    assert float(rows[0]["train.gamma"]) == 0.1
    assert rows[0]["model.depth"] == ""
    assert rows[1]["reason"] == "a, b"


def test_the_winner_of_the_finals_has_the_best_mean_not_the_best_run(tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_text(LANDSCAPE.to_yaml())
    (tmp_path / study.FINALISTS).write_text(
        "number,seed,certified,clean,mean_radius,rows\n"
        "0,0,0.7,0.9,0.5,100\n0,1,0.7,0.9,0.5,100\n"
        "4,0,0.8,0.9,0.5,100\n4,1,0.5,0.9,0.5,100\n"
    )
    order = study.standings(study.finalists(tmp_path))
    assert [row["number"] for row in order] == [0, 4]
    assert order[0]["certified"] == pytest.approx(0.7)


def test_finalists_have_intervals_of_rows_counted_once_and_of_each_seed(tmp_path: Path) -> None:
    spec = LANDSCAPE.override({"search.algorithm": "random", "search.scheduler": "none"})
    drive(spec, tmp_path, lambda params, epoch: params["model.depth"] / 10, budget=27)
    spec.save(tmp_path)
    (tmp_path / study.FINALISTS).write_text(
        "number,seed,certified,clean,mean_radius,rows\n0,1,0.9,0.9,0.5,100\n0,2,0.7,0.9,0.5,100\n"
    )
    [finalist] = summary.of(tmp_path)["finalists"]
    assert finalist["interval"] == list(wilson(0.8, 100))
    each = [(run["seed"], run["interval"]) for run in finalist["runs"]]
    assert each == [(1, list(wilson(0.9, 100))), (2, list(wilson(0.7, 100)))]


def test_a_directory_without_a_search_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="must hold a search"):
        study.load(tmp_path)
    LANDSCAPE.save(tmp_path)
    with pytest.raises(InvalidInput, match=r"must hold study\.journal"):
        study.load(tmp_path)
    with pytest.raises(InvalidInput, match="must have finished"):
        study.winner(tmp_path)


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"search.space": {}}, "names a parameter"),
        ({"search.storage": "nonsense://here"}, "must be a database that opens"),
        ({"search.directory": "nonsense://here"}, "must be a URI that PyArrow opens"),
        ({"search.directory": "relative/path"}, "must be a URI that PyArrow opens"),
        ({"search.algorithm": "grid"}, "a grid needs choices"),
        ({"data.name": "mnist", "data.directory": "/nonexistent"}, "must hold mnist"),
    ],
)
def test_a_search_that_cannot_work_is_refused_before_it_starts(
    values: dict[str, Any], match: str, tmp_path: Path
) -> None:
    spec: Spec = LANDSCAPE.override(values)
    with pytest.raises(InvalidInput, match=match):
        driver.run(spec, tmp_path / "search")
