"""Bare weights: the network that names, shapes and a spec say, or a refusal."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from raycrt.errors import InvalidInput
from raycrt.foreign import description, files
from raycrt.networks import network
from raycrt.specs import ModelSpec
from tests.foreign.models import assert_same
from tests.foreign.weights.models import SPEC, dense, named


class TestOrder:
    @pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
    @pytest.mark.parametrize(
        "names",
        [
            ("0", "2", "4"),
            ("module.features.0", "module.features.2", "module.features.4"),
            ("fc1", "fc2", "fc3"),
            ("layers.8.linear", "layers.9.linear", "layers.10.linear"),
            ("0.0", "0.2", "1.0"),
            ("hidden1", "hidden2", "out"),
            ("body.0", "body.2", "head"),
        ],
    )
    def test_names_with_numbers(self, tmp_path: Path, suffix: str, names: tuple[str, ...]) -> None:
        model, file = dense(6, 8, 8, 3), tmp_path / f"weights{suffix}"
        (torch.save if suffix == ".pt" else save_file)(named(model, *names), file)
        assert_same(model, files.load(file, SPEC), (6,))

    @pytest.mark.parametrize("roles", [("W", "b"), ("weight", "bias"), ("weights.", "biases.")])
    def test_numbers_behind_the_role(self, roles: tuple[str, str]) -> None:
        model, (weight, bias) = dense(6, 8, 8, 3), roles
        of = {0: 1, 2: 2, 4: 3}
        state = {f"{bias}{of[k]}": model[k].bias.detach() for k in of}
        state |= {f"{weight}{of[k]}": model[k].weight.detach() for k in of}
        assert_same(model, files.from_state_dict(state, SPEC), (6,))

    @pytest.mark.parametrize(
        "names", [("input", "hidden", "out"), ("one", "two", "three"), ("a", "b1", "c1")]
    )
    @pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
    def test_names_that_fix_no_order(
        self, tmp_path: Path, names: tuple[str, ...], suffix: str
    ) -> None:
        """Of four layers two can be exchanged; `layers` says which is first."""
        model, file = dense(6, 8, 8, 8, 3), tmp_path / f"weights{suffix}"
        (torch.save if suffix == ".pt" else save_file)(named(model, *names, "last"), file)
        with pytest.raises(InvalidInput, match=r"more than one order fits .*--layers") as caught:
            files.load(file, SPEC)
        assert str(file) in str(caught.value)
        assert_same(model, files.load(file, SPEC, layers=[*names, "last"]), (6,))

    def test_one_order_that_fits_is_taken_whatever_the_names(self) -> None:
        model = dense(6, 8, 5, 3)
        state = named(model, "in", "middle", "out")
        assert_same(model, files.from_state_dict(state, SPEC), (6,))
        images = files.from_state_dict(state, SPEC, (1, 2, 3))
        assert_same(nn.Sequential(nn.Flatten(), *model), images, (1, 2, 3))

    def test_stored_in_another_order_than_named(self, tmp_path: Path) -> None:
        state = named(dense(6, 8, 8, 8, 3), "fc1", "fc2", "fc3", "fc4")
        exchanged = {n: state[n] for n in sorted(state, key=lambda n: "1342".index(n[2]))}
        torch.save(exchanged, tmp_path / "w.pt")
        with pytest.raises(
            InvalidInput, match="names say fc1, fc2, fc3, fc4, and stored are fc1, fc3, fc4, fc2"
        ):
            files.load(tmp_path / "w.pt", SPEC)
        order = ["fc1", "fc3", "fc2", "fc4"]
        found = files.load(tmp_path / "w.pt", SPEC, layers=order)
        for layer, name in zip(found.layers, order, strict=True):
            assert torch.equal(layer.matrix(), state[f"{name}.weight"])

    def test_own_names_decide_before_order(self) -> None:
        state = network.build(SPEC, (6,), 3).state_dict()
        order = sorted(state, key=lambda name: (state[name].dim(), name), reverse=True)
        found = files.from_state_dict({name: state[name] for name in order}, SPEC)
        for name, tensor in found.state_dict().items():
            assert torch.equal(tensor, state[name])

    def test_bias_before_weight(self) -> None:
        model = dense(6, 8, 8, 3)
        state = named(model, "0", "2", "4")
        biases_first = {n: state[n] for n in sorted(state, key=lambda n: state[n].dim())}
        assert_same(model, files.from_state_dict(biases_first, SPEC), (6,))

    def test_a_missing_activation_is_not_put_in(self) -> None:
        """Layers 2 and 3 of a Sequential have nothing between them."""
        model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Linear(8, 3))
        with pytest.raises(InvalidInput, match="where the activation stands among 0, 2, 3"):
            files.from_state_dict(model.state_dict(), SPEC)
        found = files.from_state_dict(model.state_dict(), SPEC, layers=["0", "2+3"])
        assert_same(model, found, (6,))

    @pytest.mark.parametrize(
        ("layers", "message"),
        [
            (["fc1", "fc2"], "every layer, but net.fc3 is left out"),
            (["fc1", "fc2", "fc3", "fc3"], "'fc3' names none that is left"),
            (["fc1", "fc2", "out"], "'out' names none"),
            (["fc1", "fc3", "fc2"], r"fc2 does not take \(3,\) in the order"),
        ],
    )
    def test_stated_order_that_is_none(self, layers: list[str], message: str) -> None:
        state = named(dense(6, 8, 8, 3), "net.fc1", "net.fc2", "net.fc3")
        with pytest.raises(InvalidInput, match=message):
            files.from_state_dict(state, SPEC, layers=layers)

    def test_many_names_without_an_order_end(self) -> None:
        names = [f"layer_{a}{b}" for a in "abcdef" for b in "abcdef"]
        state = named(dense(8, *[8] * 35, 8), *names)
        state |= {f"last_{n}": t for n, t in named(dense(9, 9), "x").items()}
        with pytest.raises(InvalidInput, match="names must fix the order"):
            files.from_state_dict(state, SPEC, (8,))

    def test_more_than_ten_layers_in_safetensors(self, tmp_path: Path) -> None:
        """`10.weight` sorts before `2.weight` as text."""
        model = dense(*[4] * 12)
        save_file(model.state_dict(), tmp_path / "deep.safetensors")
        assert_same(model, files.load(tmp_path / "deep.safetensors", SPEC), (4,))


class TestShapes:
    def test_the_file_decides_depth_and_widths(self) -> None:
        for widths in ((64, 50, 25, 10), (64, 20, 10), (64, 8, 8, 8, 8, 10)):
            model = dense(*widths)
            assert_same(model, files.from_state_dict(model.state_dict(), SPEC), (64,))

    def test_no_bias(self) -> None:
        model = dense(6, 8, 8, 10, bias=False)
        found = files.from_state_dict(model.state_dict(), SPEC)
        assert_same(model, found, (6,))
        assert description.described(Path("w.pt"), found, SPEC, 10, (6,)) == SPEC

    def test_convolutions(self, tmp_path: Path) -> None:
        spec, file = ModelSpec(channels=(3, 5), kernel=4, depth=1), tmp_path / "weights.pt"
        model = network.build(spec, (1, 8, 8), 10)
        torch.save(model.state_dict(), file)
        found = files.load(file, spec, (1, 8, 8))
        assert_same(model, found, (1, 8, 8))
        assert description.described(file, found, spec, 10, (1, 8, 8)) == spec
        with pytest.raises(InvalidInput, match="input_shape must be given"):
            files.load(file, spec)
        with pytest.raises(InvalidInput, match="the spec must have channels for convolutions"):
            files.load(file, SPEC, (1, 8, 8))
        other = spec.model_copy(update={"kernel": 3})
        with pytest.raises(InvalidInput, match=r"does not take .* with kernel 3 and stride 2"):
            files.load(file, other, (1, 8, 8))

    def test_convolutions_in_two_sequentials(self) -> None:
        model = nn.Sequential(
            OrderedDict(
                features=nn.Sequential(
                    nn.Conv2d(1, 4, 3, 2, 1), nn.Tanh(), nn.Conv2d(4, 6, 3, 2, 1), nn.Tanh()
                ),
                classifier=nn.Sequential(
                    nn.Flatten(), nn.Linear(24, 7), nn.Tanh(), nn.Linear(7, 10)
                ),
            )
        )
        spec = ModelSpec(channels=(1,), depth=1, activation="tanh")
        found = files.from_state_dict(model.state_dict(), spec, (1, 8, 8))
        assert_same(model, found, (1, 8, 8))
        told = description.described(Path("w.pt"), found, spec, 10, (1, 8, 8))
        assert told is not None and (told.channels, told.depth, told.width) == ((4, 6), 2, 7)

    def test_another_number_of_classes_is_more_than_a_spec_can_say(self) -> None:
        found = files.from_state_dict(dense(6, 8, 8, 3).state_dict(), SPEC)
        assert description.described(Path("w.pt"), found, SPEC, 10, (6,)) is None
        assert description.described(Path("w.onnx"), found, SPEC, 10, (6,)) is None

    @pytest.mark.parametrize(
        ("state", "message"),
        [
            ({}, "a matrix for each layer, but got nothing"),
            ({"a.weight": (3, 4), "a.bias": (4,)}, r"but there are a.weight \(3, 4\), a.bias"),
            ({"a.weight": (3, 4), "norm.weight": (3,), "norm.bias": (3,)}, "norm.weight"),
            ({"a.weight": (3, 4, 5)}, r"a.weight \(3, 4, 5\)"),
            ({"a.weight": (3, 4), "scale": ()}, "scale"),
            ({"a.weight": (3, 4), "a.alpha": (1,)}, "a.alpha"),
            ({"a.0.weight": (3, 4), "a.1.weight": (2, 5)}, r"a.1 does not take \(3,\)"),
            ({"a.weight": (3, 4), "b.weight": (2, 5)}, "no order of a .* does"),
            ({"a.weight": (0, 4), "b.weight": (2, 0)}, r"a.weight \(0, 4\)"),
        ],
    )
    def test_nothing_is_left_over(self, state: dict[str, tuple], message: str) -> None:
        with pytest.raises(InvalidInput, match=message):
            files.from_state_dict({n: torch.ones(s) for n, s in state.items()}, SPEC)

    def test_weights_without_spec(self, tmp_path: Path) -> None:
        torch.save(dense(6, 8, 3).state_dict(), tmp_path / "weights.pt")
        with pytest.raises(InvalidInput, match="a spec of the model must be given"):
            files.load(tmp_path / "weights.pt")
