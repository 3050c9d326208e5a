"""`model.factory`: the architecture of a user's module in place of a list of layers."""

import pytest
import torch

from raycrt import data
from raycrt.errors import InvalidInput
from raycrt.foreign import factory
from raycrt.networks import network
from raycrt.specs import Spec, validate

CODE = """
from torch import nn

def build():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2), nn.SiLU(), nn.Flatten(), nn.Linear(36, 7), nn.Tanh(),
        nn.Linear(7, 10),
    )

def kinked():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.ReLU(), nn.Linear(4, 10))

def few():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.Tanh(), nn.Linear(4, 3))

def text():
    return "a network"

number = 3
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    name = f"brought_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    return name


def _spec(name: str) -> Spec:
    return validate({"model": {"factory": name}})


def test_its_layers_take_its_place(module):
    spec = factory.resolved(_spec(f"{module}:build"))
    assert spec.model.factory is None
    assert [(layer.kind, layer.activation) for layer in spec.model.hidden_layers] == [
        ("convolution", None),
        ("dense", "tanh"),
    ]
    assert spec.model.activation == "silu"
    built = network.build(spec.model, data.shape(spec.data), 10)
    assert built(torch.rand(2, 1, 8, 8)).shape == (2, 10)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("kinked", "ReLU"),
        ("few", "as many logits as the data has classes"),
        ("text", "returns a torch.nn.Module"),
        ("number", "must name a function"),
        ("none", "has no 'none'"),
    ],
)
def test_what_cannot_be_trained_is_refused(module, name, said):
    with pytest.raises(InvalidInput, match=said):
        factory.resolved(_spec(f"{module}:{name}"))


def test_a_missing_module_is_named(module):
    with pytest.raises(InvalidInput, match=r"model\.factory must name a module"):
        factory.resolved(_spec("nowhere_at_all:build"))


def test_other_keys_of_the_model_are_refused():
    with pytest.raises(InvalidInput, match="width must be left out where factory is given"):
        validate({"model": {"factory": "a:b", "width": 3}})


def test_a_factory_that_was_not_read_is_refused():
    with pytest.raises(InvalidInput, match="must first be read"):
        network.build(_spec("a:b").model, (1, 8, 8), 10)


def test_commands_read_it(module, shell, tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(f"model: {{factory: '{module}:kinked'}}\n")
    said = shell("train", "--recipe", recipe, "--out", tmp_path / "out", code=2)
    assert "ReLU" in said and "Traceback" not in said
