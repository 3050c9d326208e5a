"""The same directory again with something changed: refused naming the key, or allowed and right."""

import json
import shutil
from contextlib import nullcontext

import pandas as pd
import pytest
import ray
import typer
import yaml
from typer.testing import CliRunner

import raycrt.tuning.cli
from raycrt import data
from raycrt.certification.table import storage
from raycrt.cli import main as cli
from raycrt.distributed import stages
from raycrt.distributed.training import train
from raycrt.errors import InvalidInput
from raycrt.networks import checkpoint, network
from raycrt.specs import Spec, identity, validate
from raycrt.specs.provenance import Training
from raycrt.tuning import pipeline
from raycrt.tuning.analysis import study
from raycrt.tuning.search import driver
from raycrt.verify import verify_run
from tests.conftest import TINY
from tests.verify.runs import manifest_of, write_run

TINY_SPEC = validate(yaml.safe_load(TINY)).override({"data.limit": 20})
SPEC = TINY_SPEC.override({"certify.batch_size": 16, "model.activation": "softplus"})
APP = typer.Typer()
for command in (
    cli.train,
    cli.certify,
    cli.report,
    raycrt.tuning.cli.search,
    raycrt.tuning.cli.demo,
):
    APP.command()(command)


class Reached(RuntimeError):
    """All checks passed, and Ray would start."""


@pytest.fixture(autouse=True)
def no_ray(monkeypatch):
    def start(*arguments, **options):
        raise Reached

    for module in (stages, driver, pipeline):
        monkeypatch.setattr(module, "session", start)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """What a finished `raycrt demo` leaves, as far as its stages look at it."""
    out = tmp_path_factory.mktemp("finished") / "run"
    write_run(out, SPEC, training=Training.of(SPEC))
    (out / "search").mkdir()
    SPEC.save(out / "search")
    (out / "search" / study.BEST).write_text(SPEC.to_yaml())
    pd.DataFrame({"number": [0], "certified": [0.5]}).to_csv(out / "search" / study.TRIALS)
    SPEC.save(out / "certificates")
    for stage in ("search", "train", "certificates"):
        (out / stage / ".finished").touch()
    (out.parent / "recipe.yaml").write_text(SPEC.to_yaml())
    return out


@pytest.fixture
def out(finished, tmp_path):
    shutil.copy(finished.parent / "recipe.yaml", tmp_path)
    return shutil.copytree(finished, tmp_path / "run")


def again(out, command, *options):
    """Run a command in `out` again; what it raised, or what it said."""
    recipe = () if command in ("certify", "report") else ("--recipe", out.parent / "recipe.yaml")
    resume = ("--resume",) if command == "search" else ()
    place = [out] if command == "report" else ["--out", out]
    arguments = [command, *place, *recipe, *resume, *options]
    done = CliRunner().invoke(APP, [str(argument) for argument in arguments])
    return done.exception or done.output


def files(out):
    """All that a run has stored: the locks of directories are none of it."""
    return {
        file.relative_to(out): file.read_bytes()
        for file in out.rglob("*")
        if file.is_file() and "driver" not in file.name
    }


# What differs -> the key that is named; none where the run is the same one.
TRAINING = {
    "run.seed=7": "run.seed",
    "model.activation=tanh": "model.activation",
    "model.width=24": "model.width",
    "train.radius=0.75": "train.radius",
    "train.epochs=9": "train.epochs",
    "train.targets=2": "train.targets",
    "train.augmentation.shift=1": "train.augmentation.shift",
    "data.limit=19": "data.limit",
    "data.validation=0.3": "data.validation",
    "run.workers=7": None,
    "run.cpus_per_worker=0.5": None,
    "run.resources.team=1": None,
    "run.gpus_per_worker=1": None,
    "certify.at=[0.3]": None,
}
CERTIFICATES = {
    "certify.at=[0.3]": "certify.at",
    "certify.region=local": "certify.region",
    "certify.deployment=float32": "certify.deployment",
    "certify.steps=3": "certify.steps",
    "certify.batch_size=7": "certify.batch_size",
    "data.limit=19": "data.limit",
    "run.workers=7": None,
    "run.gpus_per_worker=1": None,
}
# What trained the weights is not certify's to say.
IDLE = ("run.seed=7", "model.activation=tanh", "train.radius=0.75", "search.trials=9")
SEARCH = {
    **{change: key for change, key in TRAINING.items() if key},
    "search.algorithm=random": "search.algorithm",
    "search.radius=0.2": "search.radius",
    "search.rung_rows=50": "search.rung_rows",
    "certify.steps=3": "certify.steps",
    "search.rungs=[2]": "search.rungs",
    "search.trials=9": None,
    "search.concurrent=1": None,
    "search.failures=3": None,
    "run.workers=7": None,
}
DEMO = {**SEARCH, "search.trials=9": "search.trials", "search.finalists=2": "search.finalists"}
TABLE = [
    (command, change, key)
    for command, changes in {
        "train": TRAINING,
        "certify": CERTIFICATES,
        "search": SEARCH,
        "demo": DEMO,
    }.items()
    for change, key in changes.items()
]


@pytest.mark.parametrize(("command", "change", "key"), TABLE)
def test_a_command_again_with_something_changed(out, command, change, key):
    before = files(out)
    found = again(out, command, "--set", change)
    if key is None:
        # A search goes on; what has finished is left as it is.
        assert isinstance(found, Reached) if command == "search" else isinstance(found, str), found
        kept = {name for name in before if name.parts[0] in ("train", "certificates")}
        assert {name: files(out)[name] for name in kept} == {name: before[name] for name in kept}
        assert verify_run(out).sound
        return
    assert isinstance(found, InvalidInput) and f"{key}=" in str(found), found
    assert files(out) == before


@pytest.mark.parametrize("change", IDLE)
def test_certify_cannot_describe_the_weights_otherwise(out, change):
    before = files(out)
    found = again(out, "certify", "--set", change)
    assert isinstance(found, InvalidInput) and "has no effect on this command" in str(found)
    assert files(out) == before


def test_data_that_has_moved_and_resources_leave_a_finished_demo_alone(out, monkeypatch):
    assert "certificates of this model are complete" in again(out, "certify", "--workers", 1)
    assert again(out, "demo", "--workers", 1).count("finished before") == 3
    assert "clean" in again(out, "report")


def test_rows_held_out_train_another_model_beside(out):
    before = files(out)
    assert isinstance(again(out, "train", "--hold-out"), Reached)
    assert files(out) == before
    assert {path.name for path in (out / "hold-out").iterdir()} <= {"driver", ".driver.lock"}
    held = network.build(SPEC.model, data.shape(SPEC.data), len(data.class_names(SPEC.data)))
    checkpoint.save_model(out / "train", held, SPEC, Training.of(SPEC, "train"))
    found = again(out, "train")
    assert isinstance(found, InvalidInput) and "validation rows were kept out" in str(found)


@pytest.mark.parametrize(("change", "key"), list(TRAINING.items()))
def test_an_interrupted_training_is_taken_up_by_its_own_spec_alone(out, change, key):
    kept = out / "train" / "ray" / "train" / "checkpoint_000001"
    model, _ = checkpoint.load_model(out / "train")
    shutil.rmtree(out / "train")
    checkpoint.save_model(kept, model, SPEC, Training.of(SPEC, epoch=1))
    checkpoint.save_state(kept, {"epoch": 1})
    found = again(out, "train", "--set", change)
    assert isinstance(found, InvalidInput if key else Reached), found
    assert key is None or f"{key}=" in str(found)


@pytest.mark.parametrize("command", ["train", "certify", "demo"])
@pytest.mark.parametrize(
    ("change", "key"), [(change, key) for change, key in TRAINING.items() if key]
)
def test_a_spec_that_is_false_of_the_weights_beside_it_is_refused(out, command, change, key):
    path, value = change.split("=")
    other = SPEC.override({path: yaml.safe_load(value)})
    other.save(out / "train")
    for stage in ("train", "certificates"):
        (out / stage / ".finished").unlink()
    (out / "certificates" / "manifest.json").unlink()
    shutil.rmtree(out / "certificates" / "rows")
    found = again(out, command)
    said = f"holds a training with {key}=" if command == "demo" else f"it states {key}="
    assert isinstance(found, InvalidInput) and said in str(found), found


def test_weights_without_a_header_are_certified_only_by_what_the_user_says(out):
    from safetensors.torch import load_file, save_file

    file = out / "train" / checkpoint.MODEL
    save_file(load_file(file), file)
    for command in ("train", "certify"):
        found = again(out, command)
        assert isinstance(found, InvalidInput) and "must state its training" in str(found)
        assert f"--model {file} --recipe {out / 'train' / 'spec.yaml'}" in str(found)


def test_certificates_of_other_weights_are_refused(out):
    other = network.build(SPEC.model, data.shape(SPEC.data), len(data.class_names(SPEC.data)))
    checkpoint.save_model(out / "train", other, SPEC, Training.of(SPEC))
    found = again(out, "certify")
    assert isinstance(found, InvalidInput) and "of the same weights" in str(found)


def test_rows_that_nothing_describes_are_refused(out):
    (out / "certificates" / "manifest.json").unlink()
    found = again(out, "certify")
    assert isinstance(found, InvalidInput) and "rows have a manifest" in str(found)


def test_certificates_that_are_complete_keep_their_time(out):
    assert isinstance(again(out, "certify"), str)
    assert manifest_of(out)["seconds"] == 1.0
    (out / "certificates" / "rows" / "000000000.parquet").unlink()
    assert isinstance(again(out, "certify"), Reached)


FORGED = {
    "training": lambda m: m["training"]["train"].update(radius=9.0),
    "training rows": lambda m: m["training"].update(rows="train"),
    "no training": lambda m: m.update(training=None),
    "no record": lambda m: m.update(training={"rows": "fit"}),
    "spec.train": lambda m: m["spec"]["train"].update(objective="standard"),
    "spec.run.seed": lambda m: m["spec"]["run"].update(seed=5),
}


@pytest.mark.parametrize("name", FORGED)
def test_the_checker_finds_a_manifest_that_is_false_of_the_weights(out, name):
    assert verify_run(out).sound
    manifest = manifest_of(out)
    FORGED[name](manifest)
    storage.write_manifest(out / "certificates", manifest)
    sentences = [finding.sentence for finding in verify_run(out).findings]
    key = name if name.startswith("spec") else "training"
    assert sentences == [f"{key} in the manifest must agree with the header of the weights."]


def test_weights_from_elsewhere_have_no_training(tmp_path):
    """Not in the model's directory, not in the manifest, not in the report."""
    out, file = tmp_path / "run", tmp_path / "bare.safetensors"
    write_run(out, SPEC)
    assert checkpoint.load_provenance(out / "train").training is None
    assert {"train", "search"}.isdisjoint(yaml.safe_load((out / "train/spec.yaml").read_text()))
    (out / "train" / checkpoint.MODEL).rename(file)
    shutil.rmtree(out / "train")
    model = network.build(SPEC.model, data.shape(SPEC.data), len(data.class_names(SPEC.data)))
    adopted = stages.adopt(SPEC, model, SPEC.model, out / "train")
    assert adopted.train == Spec().train != SPEC.train
    (tmp_path / "recipe.yaml").write_text(SPEC.to_yaml())
    found = again(out, "train")
    assert isinstance(found, InvalidInput) and "weights from elsewhere" in str(found)


def test_the_training_of_a_model_goes_with_it(finished, tmp_path):
    model, _ = checkpoint.load_model(finished / "train")
    made = Training.of(SPEC, "train", epoch=2)
    fashion = Spec().override({"data.name": "fashion-mnist", "run.seed": 3})
    told = stages.adopt(fashion, model, SPEC.model, tmp_path / "train", made)
    assert (told.data, told.train, told.run.seed) == (fashion.data, SPEC.train, SPEC.run.seed)
    kept = checkpoint.load_provenance(tmp_path / "train").training
    assert kept == made and "epoch 2 of 3" in kept.sentence and "kept out" in kept.sentence
    # The spec beside the weights tells of them, not of what is certified.
    assert checkpoint.load_model(tmp_path / "train")[1].data == SPEC.data


def test_the_first_difference_is_named_with_both_values():
    other = SPEC.override({"train.radius": 0.25, "run.seed": 3, "run.workers": 5})
    assert identity.difference(SPEC, other, identity.TRAINING) == ("train.radius", 0.5, 0.25)
    assert identity.difference(SPEC, other, ("run.seed",)) == ("run.seed", 0, 3)
    assert identity.difference(SPEC, other, identity.CERTIFICATES) is None
    assert json.loads(checkpoint.Provenance(model=SPEC.model).header()["raycrt"])["model"]


@pytest.mark.parametrize("cut", ["state.pt", "model.safetensors"])
def test_a_checkpoint_that_a_full_disk_has_cut_is_none(out, cut):
    model, _ = checkpoint.load_model(out / "train")
    place = out / "train" / "ray" / "train"
    for epoch in (1, 2):
        kept = place / f"checkpoint_{epoch}"
        checkpoint.save_model(kept, model, SPEC, Training.of(SPEC, epoch=epoch))
        checkpoint.save_state(kept, {"epoch": epoch})
    assert train.last_checkpoint(out / "train") == place / "checkpoint_2"
    whole = (place / "checkpoint_2" / cut).read_bytes()
    for length in (0, len(whole) // 2):
        (place / "checkpoint_2" / cut).write_bytes(whole[:length])
        assert train.last_checkpoint(out / "train") == place / "checkpoint_1"
    # Ray's list of checkpoints decides where a training starts, unless it was cut too.
    listing = place / "checkpoint_manager_snapshot.json"
    listing.write_text("{}")
    assert train._mended(out / "train", "train") is None and listing.is_file()
    listing.write_text("")
    assert train._mended(out / "train", "train") == str(place / "checkpoint_1")
    assert not listing.exists()


@pytest.mark.parametrize("command", ["train", "certify", "demo"])
def test_workers_without_room_are_refused_before_anything_is_stored(out, monkeypatch, command):
    shutil.rmtree(out / "certificates")
    if command == "train":
        shutil.rmtree(out / "train")
    before = files(out)
    for module in (stages, driver, pipeline):
        monkeypatch.setattr(module, "session", nullcontext)
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 2.0}}])
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    found = again(out, command, "--workers", 64)
    assert isinstance(found, InvalidInput) and "room for run.workers=64 with 1 CPU" in str(found)
    assert files(out) == before
