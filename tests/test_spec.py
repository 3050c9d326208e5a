"""Specs: every mistake is one line that names field, value, rule and the nearest known key."""

import pytest

from raycrt import recipes
from raycrt.errors import InvalidInput
from raycrt.spec import Spec, parse_override, validate

MISTAKES = {
    "unknown section": ({"trian": {}}, r"trian: unknown key; the nearest known is 'train'"),
    "unknown key": ({"train": {"gama": 1}}, r"train.gama: unknown key.*'train.gamma'"),
    "impossible value": ({"model": {"depth": 0}}, r"model.depth: .*greater than or equal to 1.* 0"),
    "one layer": ({"model": {"depth": 1}}, r"depth must be at least 2 unless channels"),
    "kernel of nothing": ({"model": {"kernel": 5}}, r"kernel and stride must be left at 3 and 2"),
    "no channels": ({"model": {"channels": [0]}}, r"model.channels.0: .*greater than or equal to"),
    "width of nothing": (
        {"model": {"channels": [4], "depth": 1, "width": 8}},
        r"width must be left at 1024 where depth is 1",
    ),
    "directions of convolutions": (
        {"model": {"channels": [4]}, "train": {"components": 20}},
        r"train.components and train.linear_layers must be left out where model.channels",
    ),
    "isometries before convolutions": (
        {"model": {"channels": [4], "depth": 3}, "train": {"linear_layers": 1}},
        r"train.components and train.linear_layers must be left out where model.channels",
    ),
    "nothing for muon": (
        {"model": {"channels": [4], "depth": 1}, "train": {"optimizer": "muon"}},
        r"train.optimizer muon must have a hidden dense layer",
    ),
    "convolutions in float32": (
        {"model": {"channels": [4]}, "certify": {"deployment": "float32"}},
        r"certify.deployment must be exact where model.channels",
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
    "data": ({"data": {"name": "mnits"}}, r"data.name: .*'mnits'"),
    "searched key": (
        {"search": {"space": {"train.gama": {"low": 1, "high": 2}}}},
        r"train.gama is no key of a spec; the nearest known is 'train.gamma'",
    ),
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


@pytest.mark.parametrize("tree", [[], "text", None, 3])
def test_a_spec_is_a_mapping(tree):
    with pytest.raises(InvalidInput, match="a spec must be a mapping"):
        validate(tree)


def test_overrides():
    spec = Spec().override({"train.gamma": 0.5, "model.depth": 3})
    assert (spec.train.gamma, spec.model.depth) == (0.5, 3)
    with pytest.raises(InvalidInput, match="'trian' is no section of a spec"):
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
    ],
)
def test_override_text(text, expected):
    assert parse_override(text) == expected


@pytest.mark.parametrize("text", ["train.gamma", "=3", "train.gamma=[1"])
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
    (tmp_path / "broken.yaml").write_text("a: [")
    with pytest.raises(InvalidInput, match="must be YAML"):
        recipes.load(str(tmp_path / "broken.yaml"))
