"""The command line: bad input is one line on standard error and exit code 2, before any work."""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

import raycrt.tuning.cli
from raycrt import data, recipes
from raycrt.certification.table import storage
from raycrt.cli import main as cli
from raycrt.distributed import stages
from raycrt.errors import InvalidInput
from raycrt.evaluation import report
from raycrt.networks import checkpoint, network
from raycrt.specs.provenance import Training
from raycrt.tuning import pipeline
from raycrt.tuning.search import driver
from raycrt.verify import verify_run
from tests.verify.runs import spec_of, write_run

RAYCRT = Path(sys.executable).parent / "raycrt"

BAD = {
    "recipe": (["train", "--recipe", "digit"], "nearest known is 'digits'"),
    "key": (["train", "--set", "train.gama=1"], "nearest known is 'train.gamma'"),
    "value": (["demo", "--set", "model.depth=1"], "depth must be at least 2"),
    "override": (["search", "--set", "train.gamma"], "section.key=value"),
    "data": (["train", "--set", "data.name=mnist", "--data-dir", "/nowhere"], "must hold mnist"),
    "workers": (["train", "--workers", "0"], "run.workers"),
    "GPUs": (["demo", "--gpus-per-worker", "-1"], "run.gpus_per_worker"),
    "trial's workers": (["search", "--workers", "0"], "search.workers"),
    "seed": (["train", "--set", f"run.seed={2**64}"], "run.seed: "),
    "training": (["train", "--set", "train.linear_layers=9"], "train.linear_layers must leave"),
    "URI": (["search", "--out", "s4://bucket/run"], "a URI must have a scheme that fsspec knows"),
    "model": (["certify", "--out", "/nowhere"], "`raycrt train --out /nowhere` puts one there"),
    "other model": (["certify", "--model", "/nowhere.onnx"], "must exist"),
    "certificates": (["report", "/nowhere"], "raycrt certify --out /nowhere` makes it"),
}


def _refused(said, message, place):
    assert message in said and len(said.strip().splitlines()) == 1
    assert "Traceback" not in said and not list(place.iterdir())


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name, shell, tmp_path, monkeypatch):
    arguments, message = BAD[name]
    monkeypatch.chdir(tmp_path)
    _refused(shell(*arguments, code=2), message, tmp_path)


@pytest.mark.slow
def test_bad_input_of_a_process(tmp_path):
    """Nothing that is imported on the way says a word, and no PATH is needed."""
    arguments, message = BAD["trial's workers"]
    done = subprocess.run(
        [RAYCRT, *arguments], capture_output=True, text=True, cwd=tmp_path, env={"PATH": ""}
    )
    assert done.returncode == 2, done.stderr
    _refused(done.stderr, message, tmp_path)


@pytest.fixture
def given(monkeypatch):
    """Runs commands on no more than their options; the specs that they would run with."""
    specs = []
    app = typer.Typer()
    for command in (cli.train, cli.certify, raycrt.tuning.cli.search, raycrt.tuning.cli.demo):
        app.command()(command)
    for module, name in (
        (stages, "train"),
        (stages, "certify"),
        (driver, "run"),
        (pipeline, "run"),
    ):
        monkeypatch.setattr(module, name, lambda spec, *rest, **named: specs.append(spec))

    def run(*arguments):
        done = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert done.exit_code == 0, done.output
        return specs.pop()

    return run


@pytest.fixture
def refused(monkeypatch, tmp_path):
    """Runs commands that are refused before Ray would start; what they say."""
    app = typer.Typer()
    for command in (cli.train, cli.certify, raycrt.tuning.cli.search, raycrt.tuning.cli.demo):
        app.command()(command)

    def start():
        raise AssertionError("Ray would start")

    for module in (stages, driver, pipeline):
        monkeypatch.setattr(module, "session", start)
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        found = CliRunner().invoke(app, [str(argument) for argument in arguments]).exception
        assert isinstance(found, InvalidInput), found
        return str(found)

    return run


@pytest.mark.parametrize("command", ["train", "demo", "certify"])
def test_workers_and_gpus_stand_for_the_keys_of_the_run(given, tmp_path, command):
    own = recipes.load("digits").override({"run.workers": 5})
    checkpoint.save_model(
        tmp_path / "train",
        network.build(own.model, data.shape(own.data), len(data.class_names(own.data))),
        own,
    )
    (tmp_path / "own.yaml").write_text(own.to_yaml())
    source = ["--out", tmp_path] if command == "certify" else ["--recipe", tmp_path / "own.yaml"]
    run = given(command, *source, "--workers", 3, "--gpus-per-worker", 0.5).run
    assert (run.workers, run.gpus_per_worker) == (3, 0.5)
    run = given(command, *source).run
    assert (run.workers, run.gpus_per_worker) == (5, own.run.gpus_per_worker)


def test_workers_of_a_search_are_those_of_a_trial(given):
    spec, own = given("search", "--workers", 3, "--gpus-per-worker", 1), recipes.load("digits")
    assert (spec.search.workers, spec.run.gpus_per_worker) == (3, 1)
    assert spec.run.workers == own.run.workers


def test_what_only_a_search_refuses_stops_no_training(given):
    short = given("train", "--set", "train.epochs=1")
    assert short.train.epochs == 1 and short.search == recipes.load("digits").search


@pytest.mark.cluster
def test_another_model_is_told_truly_and_can_be_verified(tmp_path, local_ray):
    """A 20-neuron tanh net under a recipe of another model: what is stored is the net."""
    own = recipes.load("digits").override(
        {"model": {"depth": 2, "width": 20, "activation": "tanh"}, "train.linear_layers": 0}
    )
    source, out = tmp_path / "net", tmp_path / "run"
    net = network.build(own.model, data.shape(own.data), len(data.class_names(own.data)))
    checkpoint.save_model(source, net, own)
    assert recipes.load("digits").model != own.model
    app = typer.Typer()
    app.command()(cli.certify)
    few = ["--set", "data.limit=12", "--workers", "1", "--out", str(out)]
    done = CliRunner().invoke(app, ["--model", str(source), *few])
    assert done.exit_code == 0, done.output
    _, manifest = storage.read(out / "certificates")
    assert manifest["spec"]["model"] == own.model.model_dump(mode="json")
    assert verify_run(out).sound
    other = network.build(own.model, data.shape(own.data), len(data.class_names(own.data)))
    with pytest.raises(InvalidInput, match="holds another model"):
        stages.adopt(own, other, own.model, out / "train")
    manifest["spec"]["model"] = None
    storage.write_manifest(out / "certificates", manifest)
    with pytest.raises(InvalidInput, match="only models that a spec can describe are checked"):
        verify_run(out)
    assert (
        "not one that a spec can describe"
        in report.write(out / "certificates", tmp_path / "report").markdown.read_text()
    )


IDLE = {
    "a directory for digits": (["train", "--data-dir", "/nowhere"], "comes with scikit-learn"),
    "a download of digits": (["demo", "--download"], "comes with scikit-learn"),
    "by its key": (["search", "--set", "data.directory=/nowhere"], "comes with scikit-learn"),
    "a key and its option": (
        ["train", "--workers", "2", "--set", "run.workers=3"],
        "given once` must hold, but got (key='run.workers')",
    ),
    "a key twice": (
        ["search", "--set", "train.gamma=0", "--set", "train.gamma=1"],
        "given once` must hold, but got (key='train.gamma')",
    ),
    "a search in a training": (
        ["train", "--set", "search.trials=3"],
        "search.trials=3 has no effect on this command; leave it out",
    ),
    "a recipe without its model": (["certify", "--recipe", "digits"], "--recipe goes with --model"),
    "a training of another model": (
        ["certify", "--model", "model.onnx", "--set", "train.radius=3"],
        "train.radius=3.0 has no effect",
    ),
    "a seed of another model": (
        ["certify", "--model", "model.pt", "--set", "run.seed=3"],
        "run.seed=3 has no effect",
    ),
    "a model that ONNX tells": (
        ["certify", "--model", "model.onnx", "--set", "model.width=3"],
        "model.width=3 has no effect",
    ),
}


@pytest.mark.parametrize("name", IDLE)
def test_what_has_no_effect_is_refused(refused, name):
    arguments, message = IDLE[name]
    assert message in refused(*arguments)


def test_a_directory_of_images_has_no_effect_on_a_check_of_digits(tmp_path):
    run = write_run(tmp_path / "run", spec_of(rows=4))
    with pytest.raises(InvalidInput, match=r"--data-dir is for data in files.*digits"):
        verify_run(run, data_directory=tmp_path)


@pytest.mark.parametrize("command", ["train", "search", "demo", "report"])
def test_a_place_below_a_file_is_refused_before_any_work(refused, tmp_path, command):
    (tmp_path / "file").touch()
    out = tmp_path / "file" / "run"
    if command == "report":
        run = write_run(tmp_path / "run", spec_of(rows=4))
        with pytest.raises(InvalidInput, match="must be a directory that takes files"):
            report.write(run / "certificates", out)
        return
    assert "must be a directory that takes files: Not a directory" in refused(command, "--out", out)


def test_certificates_that_cannot_be_written_are_refused_before_any_work(refused, tmp_path):
    spec = spec_of(rows=4)
    write_run(tmp_path, spec, training=Training.of(spec))
    shutil.rmtree(tmp_path / "certificates")
    (tmp_path / "certificates").touch()
    assert "certificates must be a directory that takes" in refused("certify", "--out", tmp_path)


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_disk_that_fills_up_ends_a_command_in_one_line(monkeypatch, capsys, wrapped):
    def full():
        try:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/shared/run/file")
        except OSError as error:
            if wrapped:
                raise RuntimeError("from a worker") from error
            raise

    with pytest.raises(SystemExit) as ended, cli.one_line():
        full()
    assert ended.value.code == 1
    said = capsys.readouterr().err.strip()
    assert said.startswith("raycrt: No space left on device: /shared/run/file; what was written")
    assert len(said.splitlines()) == 1
    with pytest.raises(FileNotFoundError), cli.one_line():
        raise FileNotFoundError(errno.ENOENT, "a mistake of ours is shown whole")
