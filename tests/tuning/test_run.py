"""A real search and the whole pipeline on a real Ray: what it leaves, and who can read it."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import nbformat
import optuna
import pandas as pd
import pytest
from nbclient import NotebookClient

from raycrt import InvalidInput, recipes
from raycrt.certification.table import storage
from raycrt.networks import checkpoint
from raycrt.system import trackers
from raycrt.tuning import pipeline
from raycrt.tuning.analysis import study
from raycrt.tuning.search import driver
from raycrt.tuning.trials import space
from tests.conftest import TINY, Shell

pytestmark = pytest.mark.cluster
RAYCRT = Path(sys.executable).parent / "raycrt"
NOTEBOOK = Path(__file__).resolve().parents[2] / "notebooks" / "search_analysis.ipynb"


def raycrt(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [RAYCRT, *(str(argument) for argument in arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=200)


def test_every_test_image_has_a_certificate_of_the_trained_winner(finished_run: Path) -> None:
    table, manifest = storage.read(finished_run / "certificates")
    assert len(table) == 360
    model, spec = checkpoint.load_model(finished_run / "train")
    assert manifest["weights_sha256"] == checkpoint.weights_hash(model)
    assert spec == study.winner(finished_run)


def test_the_log_ends_with_the_headline_and_files_that_exist(finished_run: Path) -> None:
    lines = (finished_run / "demo.log").read_text().strip().splitlines()
    files = [line for line in lines if line.startswith(str(finished_run))]
    assert lines[-9:] == [*files[-6:], "next:", *lines[-2:]]
    assert all(Path(file).exists() for file in files)
    assert lines[-2].startswith(f"  raycrt verify {finished_run} ")
    assert any(line.startswith("finals: trials ") for line in lines)
    assert any(re.match(r"finals (\d)/\1, ", line) for line in lines)
    assert any("certified (all classes)" in line for line in lines)
    assert sum(line.startswith("trial ") for line in lines) == 5


def test_the_log_says_how_to_watch_the_search(finished_run: Path) -> None:
    lines = [line.strip() for line in (finished_run / "demo.log").read_text().splitlines()]
    at = lines.index("watch it:")
    assert lines[at + 1].startswith("Ray dashboard: http://127.0.0.1:")
    assert lines[at + 2] == f"tensorboard --logdir {finished_run}/search/tune"
    assert lines[at + 3] == f"optuna-dashboard {finished_run}/search/study.journal"


def test_the_table_has_a_row_for_each_trial_with_its_end(finished_run: Path) -> None:
    table = pd.read_csv(finished_run / "search" / "trials.csv")
    assert list(table["number"]) == list(range(5))
    assert table["state"][0] == "complete"
    assert set(table["state"]) <= {"complete", "pruned", "failed"}
    own = space.defaults(recipes.load(str(finished_run / "search" / "spec.yaml")))
    assert table["train.gamma"][0] == own["train.gamma"]
    assert (table["epochs"][table["state"] == "pruned"] == 1).all()


def test_a_trial_that_diverged_is_failed_with_its_reason(finished_run: Path) -> None:
    table = pd.read_csv(finished_run / "search" / "trials.csv")
    assert table["state"][1] == "failed"
    assert "TrainingDiverged" in table["reason"][1]


def test_the_winner_is_not_below_the_default_in_the_finals(finished_run: Path) -> None:
    order = study.standings(study.finalists(finished_run))
    assert 0 in {row["number"] for row in order}
    assert {row["seeds"] for row in order} == {2}
    winner = study.winner(finished_run)
    spec, trials, _ = study.load(finished_run)
    [best] = [trial for trial in trials if trial.number == order[0]["number"]]
    assert space.apply(spec, best.params) == winner


def test_optuna_opens_the_journal(finished_run: Path) -> None:
    journal = str(finished_run / "search" / "study.journal")
    backend = optuna.storages.journal.JournalFileBackend(journal)
    loaded = optuna.load_study(study_name=None, storage=optuna.storages.JournalStorage(backend))
    assert len(loaded.trials) == 5
    states = {trial.state for trial in loaded.trials}
    assert optuna.trial.TrialState.RUNNING not in states


def test_tensorboard_opens_the_logs(finished_run: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    [logs] = (finished_run / "search" / "tune").glob("part-*/trial-00000")
    events = EventAccumulator(str(logs)).Reload()
    (end,) = events.Scalars("end/certified")
    table = pd.read_csv(finished_run / "search" / "trials.csv")
    assert end.value == pytest.approx(table["certified"][0]) and end.step == table["epochs"][0]
    assert [event.step for event in events.Scalars("rung/certified")] == [1]
    tags = {tag.partition("/")[0] for tag in events.Tags()["scalars"]}
    assert tags == {"rung", "end"}


def test_tensorboard_has_the_parameters_of_each_trial_that_was_measured(finished_run: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    for number in (0, 2):
        [logs] = (finished_run / "search" / "tune").glob(f"part-*/trial-{number:05d}")
        stored = EventAccumulator(str(logs)).Reload().PluginTagToContent("hparams")
        started = HParamsPluginData.FromString(stored["_hparams_/session_start_info"])
        shown = dict(started.session_start_info.hparams)
        [trial] = [t for t in study.load(finished_run)[1] if t.number == number]
        for path, value in trial.params.items():
            drawn = shown[path].string_value or shown[path].number_value
            assert drawn == pytest.approx(value)


def test_the_dashboard_serves_the_journal(finished_run: Path) -> None:
    pytest.importorskip("optuna_dashboard", reason="optuna-dashboard is served")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    journal = finished_run / "search" / "study.journal"
    program = Path(sys.executable).parent / "optuna-dashboard"
    serving = subprocess.Popen(
        [program, journal, "--host", "127.0.0.1", "--port", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        found = None
        deadline = time.monotonic() + 100
        while found is None and serving.poll() is None and time.monotonic() < deadline:
            try:
                with urlopen(f"http://127.0.0.1:{port}/api/studies", timeout=30) as answer:
                    found = json.load(answer)
            except OSError:
                time.sleep(0.2)
        assert found is not None, serving.poll()
    finally:
        serving.kill()
        serving.wait()
    names = [entry["study_name"] for entry in found["study_summaries"]]
    assert names == [study.load(finished_run)[2].study_name]


@pytest.mark.slow
def test_trials_are_logged_to_mlflow_where_it_is_asked_for(tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow", reason="trials are logged to MLflow")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(TINY)
    arguments = ["search", "--recipe", recipe, "--out", tmp_path / "run"]
    values = (f"run.mlflow={uri}", "search.trials=3", "search.finalists=0")
    done = raycrt(*arguments, *(word for value in values for word in ("--set", value)))
    assert done.returncode == 0, done.stdout + done.stderr
    _, trials, record = study.load(tmp_path / "run")
    client = mlflow.tracking.MlflowClient(uri)
    experiment = client.get_experiment_by_name(record.study_name)
    runs = client.search_runs([experiment.experiment_id])
    logged = {int(run.data.params["trial"]): run.data for run in runs}
    assert set(logged) == {0, 1, 2}
    assert logged[0].metrics["certified"] == pytest.approx(trials[0].certified)
    assert logged[0].params["train.gamma"] == str(trials[0].params["train.gamma"])


def test_without_mlflow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    spec = recipes.load("digits").override({"run.mlflow": "http://127.0.0.1:1"})
    with pytest.raises(InvalidInput, match=r"pip install 'raycrt\[mlflow\]'"):
        driver.run(spec, tmp_path / "search")
    assert not (tmp_path / "search").exists()


def test_a_rerun_skips_what_has_finished(finished_run: Path, shell: Shell) -> None:
    before = (finished_run / "train" / "model.safetensors").stat().st_mtime_ns
    recipe = finished_run / "search" / "spec.yaml"
    again = shell("demo", "--recipe", recipe, "--out", finished_run)
    assert again.count("finished before") == 3
    assert (finished_run / "train" / "model.safetensors").stat().st_mtime_ns == before


def test_another_recipe_in_the_same_directory_is_refused(finished_run: Path) -> None:
    spec = recipes.load(str(finished_run / "search" / "spec.yaml"))
    with pytest.raises(
        InvalidInput, match=r"model\.width=16, but this command has model\.width=17"
    ):
        pipeline.run(spec.override({"model.width": 17}), finished_run)


def test_study_speaks_to_scripts_and_exports_a_recipe(
    finished_run: Path, tmp_path: Path, shell: Shell
) -> None:
    exported = tmp_path / "winner.yaml"
    out = tmp_path / "study"
    said = shell("study", finished_run, "--json", "--export", exported, "--out", out)
    found = json.loads(said)
    assert sum(found["states"].values()) == 5
    assert found["failures"][0]["number"] == 1
    low, high = found["best"][0]["interval"]
    assert low <= found["best"][0]["certified"] <= high
    assert recipes.load(str(exported)) == study.winner(finished_run)
    assert (found["contour"]["x"], found["contour"]["y"]) == ("train.gamma", "model.depth")
    assert sum(map(sum, found["contour"]["trials"])) == found["states"]["complete"]
    assert {file.name for file in out.iterdir()} >= {"study.json", "contour.png", "slices.png"}
    assert "Pareto" in shell("study", finished_run)
    assert (finished_run / "study" / "study.json").is_file()


def test_a_search_is_not_started_over_by_mistake(finished_run: Path, shell: Shell) -> None:
    recipe = finished_run / "search" / "spec.yaml"
    assert "--resume" in shell("search", "--recipe", recipe, "--out", finished_run, code=2)


@pytest.mark.parametrize("kept", [None, "search-mnist"])
def test_the_notebook_reads_a_finished_run_and_the_search_that_is_kept(
    kept: str | None,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if kept is None:
        run = request.getfixturevalue("finished_run")
    else:
        run = shutil.copytree(NOTEBOOK.parents[1] / "docs" / "results" / kept, tmp_path / kept)
    trials = run / "search" / "trials.csv"
    table = pd.read_csv(trials)
    # A number that four decimals would show as none.
    table.loc[0, "train.learning_rate"] = 1.25e-5
    trials.write_text(table.to_csv(index=False))
    monkeypatch.setenv("RAYCRT_RUN", str(run))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    beside = {"metadata": {"path": str(NOTEBOOK.parent)}}
    NotebookClient(notebook, timeout=120, kernel_name="python3", resources=beside).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 4
    assert not [output for output in outputs if output.get("name") == "stderr"]
    shown = next(o["data"]["text/plain"] for o in outputs if "text/plain" in o.get("data", {}))
    assert "1.25e-05" in shown and " 0.0000" not in shown


@pytest.mark.slow
@pytest.mark.timeout(500)
def test_trainings_and_trials_are_logged_to_both_trackers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow", reason="trainings are logged to MLflow")
    pytest.importorskip("wandb", reason="trainings are logged to Weights & Biases")
    monkeypatch.setenv("WANDB_MODE", "offline")
    uri, recipe = f"sqlite:///{tmp_path}/mlflow.db", tmp_path / "tiny.yaml"
    recipe.write_text(TINY)
    values = (f"run.mlflow={uri}", "run.wandb=mine")
    options = [word for value in values for word in ("--set", value)]
    few = ("--set", "search.trials=2", "--set", "search.finalists=0")
    for command in (["search", *few], ["train"]):
        done = raycrt(*command, "--recipe", recipe, "--out", tmp_path / "run", *options)
        assert done.returncode == 0, done.stdout + done.stderr
    client = mlflow.tracking.MlflowClient(uri)
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    (trained,) = (run for run in runs if "trial" not in run.data.params)
    assert trained.info.status == "FINISHED" and trained.data.params["train.gamma"] == "0.001"
    history = client.get_metric_history(trained.info.run_id, "train/loss")
    assert [metric.step for metric in history] == [1, 2, 3]
    assert len(list((tmp_path / "run" / "train" / "wandb").glob("offline-run-*"))) == 1
    assert len(list((tmp_path / "run" / "search" / "wandb").glob("offline-run-*"))) == 2


def test_a_tracker_that_does_not_answer_is_named_before_a_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow", reason="trainings are logged to MLflow")
    nobody: dict[str, Any] = {"wandb": None, "group": "a", "name": "b", "directory": None}
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with (
        pytest.raises(InvalidInput, match="the tracker of a training must answer"),
        trackers.opened(mlflow="http://127.0.0.1:9", settings={}, **nobody),
    ):
        pass
