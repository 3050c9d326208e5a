"""What the command line tells of recipes, keys and the machine, and how it completes them."""

import json
import subprocess
import sys
from unittest.mock import Mock

import pytest
import typer
from typer.main import get_command

from raycrt import __version__, recipes
from raycrt.cli.about import completion, doctor
from raycrt.cli.about.keys import keys
from raycrt.cli.main import assembled
from raycrt.errors import InvalidInput
from raycrt.specs import Spec, parse_override, strict_yaml, validate

# A line for each command that must answer at once: no argument, a mistake, or a completion.
QUICK = """
import json, os, sys
from contextlib import redirect_stderr, redirect_stdout
from raycrt.cli.main import app, main
words = ["--help", "--version", "trian", "train --help", "train --recpe x", "train --recipe digit",
         "train --set train.gama=1", "train --workers 0", "demo --recipe digit", "recipes",
         "search --set train.gamma", "certify --recipe digits", "show digits", "show digit",
         "data digit", "init new --data digit", "init new --data digits --set model.x=1"]
def run(line):
    app.registered_commands.clear()
    sys.argv = ["raycrt", *line.split()]
    try:
        main()
    except SystemExit as ended:
        return ended.code or 0
with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
    codes = [run(line) for line in words]
    os.environ.update(_RAYCRT_COMPLETE="complete_bash", COMP_WORDS="raycrt\\ntrain\\n--set\\nt",
                      COMP_CWORD="3")
    codes.append(run(""))
heavy = "torch torchvision ray pandas scipy sklearn matplotlib optuna PIL tensorboard onnx fsspec"
print(json.dumps([codes, sorted(set(heavy.split()) & set(sys.modules))]))
"""


def test_help_mistakes_and_completion_load_nothing_heavy(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", QUICK], capture_output=True, text=True, cwd=tmp_path
    )
    codes, loaded = json.loads(done.stdout)
    assert codes == [0, 0, 2, 0, 2, 2, 2, 2, 2, 0, 2, 2, 0, 2, 2, 2, 2, 0]
    assert loaded == []


def test_the_version_is_one(shell):
    assert shell("--version") == f"raycrt {__version__}\n"


@pytest.mark.parametrize("command", get_command(assembled()).commands)
def test_help_names_what_options_take(command, shell, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    lines = [line.strip("│ *") for line in shell(command, "--help").splitlines()]
    options = [line.split()[:2] for line in lines if line.startswith("--")]
    assert ["--help", "Show"] in options
    # What follows is a word in capitals, or the first one of a flag's meaning.
    assert not [option for option in options if option[1].startswith("<")]


def test_every_key_has_a_meaning():
    assert [key.path for key in keys() if not key.meaning] == []


def test_recipes_are_listed_in_80_columns(shell):
    said = shell("recipes")
    assert [line.split()[0] for line in said.splitlines() if line[0] != " "] == recipes.names()
    assert max(map(len, said.splitlines())) <= 80
    assert "ship inside scikit-learn" in said


@pytest.mark.parametrize("name", recipes.names())
def test_what_is_shown_is_the_recipe(shell, name):
    said = shell("show", name)
    assert validate(strict_yaml.parse(said, "what is shown")) == recipes.load(name)
    assert max(map(len, said.splitlines())) <= 80
    for key in keys():
        assert f" {key.path.rpartition('.')[2]}:" in said


def test_values_and_defaults_are_told_apart(shell, tmp_path):
    long = {"mean": [0.123456] * 40, "std": [1.5] * 40}
    own = recipes.load("digits").override(
        {"train.epochs": 7, "data.scale": long, "train.precision": "tf32"}
    )
    file = tmp_path / "own.yaml"
    file.write_text(own.to_yaml())
    said = shell("show", file)
    assert validate(strict_yaml.parse(said, "what is shown")) == own
    assert "  # passes over the training rows (default: 24)\n  epochs: 7\n" in said
    assert "float64, tf32, bfloat16\n  # (default: float32)\n  precision: tf32\n" in said
    assert "(default)\n  stride: 2\n" in said
    assert max(map(len, said.splitlines()[1:])) <= 80  # The first has the path.


def test_a_recipe_that_is_not_there_has_a_nearest_name(shell):
    assert "the nearest known is 'mnist-conv'" in shell("show", "mnist-conf", code=2)


def test_recipes_and_yaml_files_are_completed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("mine.yaml", "mnist.yml", "mnist.txt"):
        (tmp_path / name).touch()
    found = [name for name, _ in completion.recipes("m")]
    assert found == [*(n for n in recipes.names() if n[0] == "m"), "mine.yaml", "mnist.yml"]
    assert completion.recipes("runs/") == []


PRECISIONS = [f"train.precision={v}" for v in ("float32", "float64", "tf32", "bfloat16")]


@pytest.mark.parametrize(
    ("incomplete", "expected"),
    [
        ("train.ga", ["train.gamma=", "train.gamma=0.0"]),
        ("train.prec", PRECISIONS),
        ("train.precision=t", PRECISIONS),
        ("model.head", ["model.head=true", "model.head=false"]),
        ("model.logits=", ["model.logits=1", "model.logits=null"]),
        ("train.attack", ["train.attack_steps=", "train.attack_steps=4"]),
        ("data.s", ["data.source=", "data.split_seed=", "data.shape=", "data.scale="]),
        ("train.gama=", []),
    ],
)
def test_keys_and_values_are_completed(incomplete, expected):
    assert [word for word, _ in completion.overrides(incomplete)] == expected


@pytest.mark.parametrize("key", [key for key in keys() if key.choices], ids=lambda key: key.path)
def test_every_value_that_is_offered_is_one_of_the_key(key):
    for choice in key.choices:
        try:
            Spec().override(dict([parse_override(f"{key.path}={choice}")]))
        except InvalidInput as error:
            # A rule between keys may refuse it, the key itself may not.
            assert not str(error).startswith(key.path)


@pytest.mark.parametrize(
    ("pieces", "reply"),
    [
        (["--set", "train.precision", "=", "bf"], ["bfloat16"]),
        (["--set", "model.head", "="], ["true", "false"]),
        (["--set", "train.beta"], []),
        (["--set", "train.ram"], ["train.ramp=", "train.ramp=0.25"]),
        (["--set", "=", "model.head", "=", "t"], ["true"]),
        (["--recipe", "=", "dig"], ["digits"]),
        (["--recipe", "dig"], ["digits"]),
        (["--hold"], ["--hold-out"]),
        (["--set", "run.seed", "=", "1", ""], []),
        (["--set", "'data.class_names", "=", "[a"], []),
    ],
)
def test_bash_gets_what_stands_in_place_of_its_last_piece(shell, monkeypatch, pieces, reply):
    words = ["raycrt", "train", *pieces]
    monkeypatch.setenv("_RAYCRT_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "\n".join(words))
    monkeypatch.setenv("COMP_CWORD", str(len(words) - 1))
    assert shell().split() == reply


@pytest.fixture
def healthy(monkeypatch, tmp_path):
    """A machine without what needs time to look at: torch and Ray."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("RAYCRT_DATA", raising=False)
    monkeypatch.setitem(doctor._CHECKS, "GPU", lambda: "none")
    monkeypatch.setitem(doctor._CHECKS, "Ray", lambda: "starts here")


def test_the_doctor_has_a_line_for_each_check(shell, healthy):
    said = shell("doctor").splitlines()
    assert [line.split()[0] for line in said] == list(doctor._CHECKS)
    assert f"{__version__} in " in said[0] and "torch 2." in said[2]
    assert "WRONG" not in "".join(said)


def test_the_doctor_finds_no_digits_without_what_brings_them(shell, healthy, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    assert "none; RAYCRT_DATA is not set" in shell("doctor")
    (tmp_path / "cifar-10-batches-py").mkdir()
    monkeypatch.setenv("RAYCRT_DATA", str(tmp_path))
    assert "      cifar10; RAYCRT_DATA is" in shell("doctor")


def test_the_doctor_finds_named_sets(shell, healthy, monkeypatch, tmp_path):
    (tmp_path / "cifar-10-batches-py").mkdir()
    monkeypatch.setenv("RAYCRT_DATA", str(tmp_path))
    assert f"digits, cifar10; RAYCRT_DATA is {tmp_path}" in shell("doctor")


def test_the_doctor_measures_the_disk_of_a_directory_that_ray_will_make(
    shell, healthy, monkeypatch, tmp_path
):
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / "not" / "yet"))
    assert "GiB free for Ray" in shell("doctor")


def _no_ray():
    raise InvalidInput("HOME must take files; set RAY_AUTH_TOKEN_PATH")


def _no_torch():
    raise ModuleNotFoundError("no torch", name="torch")


@pytest.mark.parametrize(
    ("part", "replaced", "remedy"),
    [
        ("_CHECKS.Ray", _no_ray, "Ray       WRONG: HOME must take files; set RAY_AUTH"),
        (
            "_CHECKS.GPU",
            _no_torch,
            "GPU       WRONG: this needs torch, which is not installed: pip",
        ),
        ("version", lambda name: "1.0", "torch must be 2.14.1, but is 1.0"),
        ("requires", lambda name: ["torch==2", "nothing-like-it"], "nothing-like-it must be inst"),
        (
            "entry_points",
            lambda group: [],
            "raycrt    WRONG: raycrt must be installed, but it runs",
        ),
        (
            "shutil.disk_usage",
            lambda place: Mock(free=10**6),
            "MB free, but it has 1 MB; make room, or name another",
        ),
        ("socket.create_server", Mock(side_effect=OSError(13, "denied")), "must let this machine"),
        ("tempfile.TemporaryFile", Mock(side_effect=OSError(30, "read-only")), "go to another dir"),
    ],
)
def test_what_is_wrong_has_a_remedy(healthy, monkeypatch, capsys, part, replaced, remedy):
    if part.startswith("_CHECKS."):
        monkeypatch.setitem(doctor._CHECKS, part.removeprefix("_CHECKS."), replaced)
    else:
        monkeypatch.setattr(f"raycrt.cli.about.doctor.{part}", replaced)
    with pytest.raises(typer.Exit) as ended:
        doctor.doctor()
    assert ended.value.exit_code == 1
    said = capsys.readouterr().out
    assert remedy in said and said.count("WRONG") == 1
    assert len(said.splitlines()) == len(doctor._CHECKS)


def test_a_directory_of_data_that_is_not_there_is_wrong(healthy, monkeypatch, capsys):
    monkeypatch.setenv("RAYCRT_DATA", "/nowhere")
    with pytest.raises(typer.Exit):
        doctor.doctor()
    assert "RAYCRT_DATA=/nowhere must name a directory" in capsys.readouterr().out


def test_a_cluster_that_does_not_answer_is_wrong(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:8265")
    with pytest.raises(InvalidInput, match="without RAY_ADDRESS, Ray starts on this machine"):
        doctor._ray()


def test_a_machine_with_too_few_cpus_is_wrong(monkeypatch):
    from raycrt.distributed import preflight

    monkeypatch.setattr(preflight, "get_num_cpus", lambda: 1)
    with pytest.raises(InvalidInput, match="--workers 1 asks for less"):
        preflight.local(2)


@pytest.mark.cluster
def test_a_cluster_is_asked_for_its_resources(local_ray, monkeypatch):
    import ray

    address = ray.get_runtime_context().gcs_address
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert doctor._ray() == f"answers at {address}: 2 CPUs, 0 GPUs, nodes: 1"
    assert doctor._ports() == "those of the cluster"


def test_names_that_complete_are_those_that_ship():
    from raycrt.activations import ACTIVATIONS
    from raycrt.training.objectives import OBJECTIVES
    from raycrt.training.optimizers import OPTIMIZERS

    shipped = {
        "train.objective": OBJECTIVES,
        "train.optimizer": OPTIMIZERS,
        "model.activation": ACTIVATIONS,
    }
    meaning = {key.path: key.meaning for key in keys()}
    for path, names in shipped.items():
        found = [name.partition("=")[2] for name, _ in completion.overrides(f"{path}=")]
        assert len(found) > 1 and {*found} <= {*names}
        assert "added to" in meaning[path] and all(name in meaning[path] for name in found)
