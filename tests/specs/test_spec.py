"""Specs: every mistake is one line that names field, value, rule and the nearest known key."""

import re
from pathlib import Path

import pytest
import torch
from pydantic import BaseModel

from raycrt import recipes
from raycrt.errors import InvalidInput
from raycrt.specs import DataSpec, Spec, parse_override, paths, strict_yaml, validate
from raycrt.training.options import rules

MISTAKES = {
    "unknown section": ({"trian": {}}, r"trian: unknown key; the nearest known is 'train'"),
    "unknown key": ({"train": {"gama": 1}}, r"train.gama: unknown key.*'train.gamma'"),
    "impossible value": ({"model": {"depth": 0}}, r"model.depth: must be at least 1, but got 0$"),
    "one layer": ({"model": {"depth": 1}}, r"depth must be at least 2 unless channels"),
    "kernel of nothing": ({"model": {"kernel": 5}}, r"kernel and stride must be left at 3 and 2"),
    "no channels": ({"model": {"channels": [0]}}, r"model.channels.0: must be at least 1"),
    "width of nothing": (
        {"model": {"channels": [4], "depth": 1, "width": 8}},
        r"width must be left at 1024 where depth is 1",
    ),
    "not a number": ({"train": {"gamma": float("nan")}}, r"train.gamma: .*finite"),
    "wrong type": ({"train": {"epochs": "many"}}, r"train.epochs: .*integer.*'many'"),
    "activation": (
        {"model": {"activation": "sofplus"}},
        r"model.activation: .*nearest.*'softplus'",
    ),
    "beta of tanh": ({"model": {"activation": "tanh", "beta": 2}}, r"beta must be left at 1"),
    "radii": (
        {"certify": {"at": [1, 0.5]}},
        r"certify.at: must be positive and strictly increasing",
    ),
    "activation with a kink": (
        {"model": {"activation": "relu"}},
        r"activation: must be one of .* \(a kink has no second derivative .*\), but got 'relu'",
    ),
    "data": ({"data": {"name": "mnits"}}, r"data.name: .*nearest known is 'mnist', .*'mnits'"),
    "workers": ({"run": {"workers": 0}}, r"^run.workers: must be at least 1, but got 0$"),
    "neither one nor a range": (
        {"run": {"workers": "all"}},
        r"^run.workers: must be an integer or a mapping, but got 'all'$",
    ),
    "range that goes down": (
        {"run": {"workers": {"low": 3, "high": 2}}},
        r"^run.workers: must have low <= high, but got {'low': 3, 'high': 2}$",
    ),
    "range without an end": (
        {"run": {"workers": {"low": 0}}},
        r"^run.workers.low: must be at least 1, but got 0 \(and 1 more\)$",
    ),
    "kernel of one": (
        {"model": {"layers": [{"kind": "convolution", "channels": 4, "kernel": [3, 0]}]}},
        r"^model.layers.0.kernel.1: must be at least 1, but got 0$",
    ),
    "keys of a rule alone": (
        {"model": {"head": False, "width": 8}},
        r"but got {'head': False}$",
    ),
    "seed beyond 64 bits": ({"run": {"seed": 2**64}}, r"run.seed: must be at most"),
    "negative seed": ({"run": {"seed": -1}}, r"run.seed: must be at least 0"),
    "half a seed": ({"run": {"seed": 1.5}}, r"run.seed: .*integer.*1.5"),
    "truth for a number": ({"train": {"epochs": True}}, r"train.epochs: must be an integer.*True"),
    "text for a number": ({"train": {"gamma": "1_0"}}, r"train.gamma: must be a number.*'1_0'"),
    "text for a radius": ({"search": {"radius": ["infinity"]}}, r"search.radius.*'infinity'"),
    "endless training": ({"train": {"epochs": 10**30}}, r"train.epochs: must be at most 1000000"),
    "GPUs in parts": ({"run": {"gpus_per_worker": 1.5}}, r"run.gpus_per_worker: must be whole"),
    "no CPU": ({"run": {"cpus_per_worker": 1e-9}}, r"run.cpus_per_worker: .*0.0001"),
    "a resource of Ray's own": ({"run": {"resources": {"gpu": 1}}}, r"run.resources: .*unlike gpu"),
    "none of a resource": ({"run": {"resources": {"a": 0}}}, r"run.resources.a: .*0.0001"),
    "password of a database": (
        {"search": {"storage": "postgresql+psycopg://me:hidden@host/name"}},
        r"search.storage: must hold no password.*but got a URI$",
    ),
    "password in a query": (
        {"search": {"storage": "postgresql+psycopg://host/name?user=me&password=hidden"}},
        r"search.storage: must hold no password.*but got a URI$",
    ),
    "password of a tracker": (
        {"run": {"mlflow": "https://me:hidden@host"}},
        r"run.mlflow: .*a URI$",
    ),
    "secret of a bucket": ({"search": {"directory": "s3://key:hidden@b"}}, r"directory: .*a URI$"),
    "rungs that go back": ({"search": {"rungs": [3, 2]}}, r"search.rungs: .*strictly increasing"),
    "value of a thousand words": ({"data": {"name": "x" * 9000}}, r"data.name: .{,300}$"),
    "empty range": (
        {"search": {"space": {"train.gamma": {"low": 2, "high": 1}}}},
        r"must have low <= high",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes(name):
    tree, message = MISTAKES[name]
    with pytest.raises(InvalidInput, match=message) as caught:
        validate(tree)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("path", paths(Spec))
def test_what_is_refused_is_named_in_words_of_specs(path):
    """No value that a key may not have is refused in words of Python or of pydantic."""
    foreign = r"tuple|dict|string|bool|instance|input should|constrained|Spec\b|numbers\.|\[key\]"
    refused = 0
    for value in ("?", 0, -1, 1.5, True, None, [1, 2], [], {"a": 1}, 1e30, [[]], [{"a": []}]):
        try:
            Spec().override({path: value})
        except InvalidInput as error:
            refused += 1
            where, _, rule = str(error).partition(": ")
            assert where == path or where.startswith(f"{path}.") or path.startswith(f"{where}.")
            said = rule.partition(", but got ")[0]
            assert said and not re.search(foreign, said), error
    assert refused > 3


@pytest.mark.parametrize("path", paths(Spec))
def test_a_misspelt_key_is_answered_with_the_one_that_was_meant(path):
    section, _, key = path.rpartition(".")
    for misspelt in (f"{section}.{key[1:]}x", f"{section[1:]}x.{key}"):
        with pytest.raises(InvalidInput, match="nearest known is ") as refused:
            Spec().override({misspelt: 1})
        assert str(refused.value).startswith(misspelt)
    with pytest.raises(InvalidInput, match=f"nearest known is '{path}'$"):
        Spec().override({f"{section[0]}{section[2:]}{section[1]}.{key}": 1})


def _integers(record, prefix=""):
    for name, field in record.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _integers(field.annotation, f"{prefix}{name}.")
        elif field.annotation in (int, int | None):
            yield prefix + name


@pytest.mark.parametrize("path", list(_integers(Spec)))
@pytest.mark.parametrize("value", [2**63, -(2**63) - 1, "nan", 0.5])
def test_no_integer_overflows_what_counts_with_it(path, value):
    with pytest.raises(InvalidInput, match=path):
        Spec().override({path: value})


def test_the_largest_seed_is_one_that_torch_takes():
    largest = Spec().override({"run.seed": 2**43 - 1}).run.seed
    torch.Generator().manual_seed((largest + 10**6) * 1_000_003 + 10**12)
    with pytest.raises(InvalidInput, match=r"run\.seed"):
        Spec().override({"run.seed": largest + 1})


TRAINING = {
    "directions of convolutions": (
        {"model": {"channels": [4]}, "train": {"components": 20}},
        r"train.components and train.linear_layers must be left out where model.channels",
    ),
    "isometries before convolutions": (
        {"model": {"channels": [4], "depth": 3}, "train": {"linear_layers": 1}},
        r"train.components and train.linear_layers must be left out where model.channels",
    ),
    "isometries before a list": (
        {"model": {"layers": [{"kind": "dense", "width": 4}]}, "train": {"linear_layers": 1}},
        r"train.linear_layers must be left out where model.layers",
    ),
    "nothing for muon": (
        {"model": {"channels": [4], "depth": 1}, "train": {"optimizer": "muon"}},
        r"train.optimizer muon must have a hidden dense layer",
    ),
    "only isometries": (
        {"model": {"depth": 3}, "train": {"linear_layers": 2}},
        r"train.linear_layers must leave at least 2",
    ),
    "more directions than pixels": ({"train": {"components": 65}}, r"train.components <= pixels"),
    "isometries of too many inputs": (
        {"model": {"depth": 3, "width": 20}, "train": {"linear_layers": 1}},
        r"train.linear_layers needs no more inputs",
    ),
}


@pytest.mark.parametrize("name", TRAINING)
def test_what_only_training_cannot_do_is_refused_by_training_alone(name):
    tree, message = TRAINING[name]
    with pytest.raises(InvalidInput, match=message):
        rules.check_training(validate(tree))


def test_convolutions_are_not_certified_in_float32_but_trained():
    spec = validate({"model": {"channels": [4]}, "certify": {"deployment": "float32"}})
    rules.check_training(spec)
    with pytest.raises(InvalidInput, match=r"certify\.deployment must be exact"):
        rules.check_certification(spec)


@pytest.mark.parametrize("recipe", recipes.names())
def test_every_recipe_can_be_trained_and_certified(recipe):
    rules.check_training(recipes.load(recipe))
    rules.check_certification(recipes.load(recipe))


@pytest.mark.parametrize("tree", [[], "text", None, 3])
def test_a_spec_is_a_mapping(tree):
    with pytest.raises(InvalidInput, match="a spec must be a mapping"):
        validate(tree)


def test_overrides():
    spec = Spec().override({"train.gamma": 0.5, "model.depth": 3})
    assert (spec.train.gamma, spec.model.depth) == (0.5, 3)
    with pytest.raises(InvalidInput, match=r"'trian' is not a section of a spec; .* 'train.gamma'"):
        Spec().override({"trian.gamma": 1})
    with pytest.raises(InvalidInput, match="unknown key"):
        Spec().override({"train.gama": 1})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("train.gamma=1e-3", ("train.gamma", 1e-3)),
        ("model.depth=3", ("model.depth", 3)),
        ("certify.at=[0.1, 0.2]", ("certify.at", [0.1, 0.2])),
        ("data.name=mnist", ("data.name", "mnist")),
        ("data.download=true", ("data.download", True)),
        ("train.gamma=nan", ("train.gamma", "nan")),
        ("train.gamma=1_0", ("train.gamma", "1_0")),
        ("train.gamma=infinity", ("train.gamma", "infinity")),
        ("run.seed=010", ("run.seed", 10)),
        ("run.seed=0x10", ("run.seed", 16)),
        ("train.radius=.5", ("train.radius", 0.5)),
        ("train.radius=1:30", ("train.radius", "1:30")),
        ("data.directory=no", ("data.directory", "no")),
        ("search.space={a: {choices: [1e-3, 2]}}", ("search.space", {"a": {"choices": [1e-3, 2]}})),
    ],
)
def test_override_text(text, expected):
    assert parse_override(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "train.gamma",
        "=3",
        "train.gamma=[1",
        "a={b: 1, b: 2}",
        "a=" + "[" * 9000,
        "run.seed=" + "9" * 9000,
    ],
)
def test_bad_override_text(text):
    with pytest.raises(InvalidInput, match=r"override|must be YAML"):
        parse_override(text)


def test_every_recipe_loads_and_survives_a_round_trip(tmp_path):
    assert "digits" in recipes.names()
    for name in recipes.names():
        spec = recipes.load(name)
        spec.save(tmp_path)
        assert Spec.load(tmp_path) == spec


def test_recipes_that_do_not_exist(tmp_path):
    with pytest.raises(InvalidInput, match=r"recipe must be one of .*'digit'.*nearest.*'digits'"):
        recipes.load("digit")
    with pytest.raises(InvalidInput, match="a spec file must exist"):
        recipes.load(str(tmp_path / "none.yaml"))
    with pytest.raises(InvalidInput, match="a spec file must exist"):
        recipes.load(f"{tmp_path}/")
    with pytest.raises(InvalidInput, match=r"must exist|can be read"):
        recipes.load(f"{tmp_path}/{'x' * 300}.yaml")


FILES = {
    "cut": (b"a: [", "must be YAML: line 1"),
    "UTF-16": ("run: {seed: 1}".encode("utf-16"), "must be text in UTF-8, but byte 0 is 0xff"),
    "UTF-16 without a mark": ("run: {seed: 1}".encode("utf-16-le"), "must be YAML: .*#x0000"),
    "Latin-1": ("# Größe\n".encode("latin-1"), "must be text in UTF-8, but byte 4 is 0xf6"),
    "binary": (bytes(range(1, 256)), "must be text in UTF-8|must be YAML"),
    "empty": (b"", "must state a spec, but it is empty"),
    "comments": (b"# nothing\n", "must state a spec, but it is empty"),
    "tabs": (b"run:\n\tseed: 1\n", "must be YAML: line 2: .*tab|line 2"),
    "key twice": (b"run:\n  seed: 1\n  seed: 2\n", "line 3: the key 'seed' occurs twice"),
    "section twice": (b"run: {}\nrun: {}\n", "line 2: the key 'run' occurs twice"),
    "list": (b"- run\n", "must be a mapping of sections, but got"),
    "number for a key": (b"run: {1: 2}\n", "line 1: a key must be text, but got '1'"),
    "list for a key": (b"? [a, b]\n: 1\n", "line 1: a key must be text"),
    "two documents": (b"run: {}\n---\nrun: {}\n", "must be YAML: line 2"),
    "code": (b"run: !!python/object/apply:os.getcwd []\n", "must be YAML: line 1"),
    "large": (b"#" * 2**21, "must be a spec, but it has more than"),
    "laughs": (
        b"a: &a [x, x]\n"
        + b"".join(
            b"%c: &%c [*%c, *%c]\n" % (k, k, k - 1, k - 1) for k in range(ord("b"), ord("z"))
        ),
        r"line 2: the alias \*a must be written out",
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_files_that_state_no_spec(name, tmp_path):
    content, message = FILES[name]
    file = tmp_path / "recipe.yaml"
    file.write_bytes(content)
    with pytest.raises(InvalidInput, match=message) as caught:
        recipes.load(str(file))
    assert len(str(caught.value).splitlines()) == 1 and len(str(caught.value)) < 400


def test_a_recipe_may_have_a_byte_order_mark_and_no_name_of_its_own(tmp_path):
    (tmp_path / "a.yaml").write_bytes("\ufeffrun: {seed: 3}".encode())
    assert recipes.load(str(tmp_path / "a.yaml")).run.seed == 3
    (tmp_path / "b.yaml").mkdir()
    with pytest.raises(InvalidInput, match=r"none at .*b\.yaml/spec\.yaml"):
        recipes.load(str(tmp_path / "b.yaml"))


def test_a_file_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    (tmp_path / "a.yaml").touch()

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(InvalidInput, match=r"a\.yaml must be a file that can be read: Permission"):
        recipes.load(str(tmp_path / "a.yaml"))


def test_what_is_written_is_read_as_it_was():
    spec = Spec().override(
        {
            "search.space": {"model.activation": {"choices": ["1e-3", "no", "0o7", "null", "ß"]}},
            "search.storage": "010",
            "data.directory": "~",
        }
    )
    assert validate(strict_yaml.parse(spec.to_yaml(), "spec")) == spec


def test_a_relative_directory_is_below_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")
    assert DataSpec(directory=Path("images")).directory == tmp_path / "images"
    assert DataSpec(directory=Path("../x")).directory == tmp_path.parent / "x"
    assert DataSpec(directory=Path("~/x")).directory == Path("/home/someone/x")
    assert Spec().override({"data.directory": "images"}).data.directory == tmp_path / "images"
